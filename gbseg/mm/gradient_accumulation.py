"""The gradients between two steps of the optimizer, where ``accumulative_counts`` gathers those of several iterations."""

from collections.abc import Mapping

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.distributed.tensor import DTensor

from gbseg.mm.checkpoint_loading import CheckpointError
from gbseg.mm.compat import checkpoint_to_load, unwrap_model

__all__ = ["optim_wrappers", "pending_gradients", "restore_gradients"]


def optim_wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, OptimWrapper]:
    """The wrappers of a run's optimizers by name; a single one has none."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {"": wrapper}


def pending_gradients(runner: Runner) -> dict[str, Tensor]:
    """The gradients of this process by parameter that no step has been taken with yet; empty right after a step."""
    pending = {
        id(parameter)
        for wrapper in optim_wrappers(runner.optim_wrapper).values()
        if not wrapper.should_update()
        for group in wrapper.param_groups
        for parameter in group["params"]
    }
    named = unwrap_model(runner.model).named_parameters() if pending else ()
    return {
        name: _own_part(parameter.grad.detach()).cpu()
        for name, parameter in named
        if id(parameter) in pending and parameter.grad is not None
    }


def _own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor that ``fully_shard`` distributes; any other as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def restore_gradients(runner: Runner, gradients: Mapping[str, Tensor]) -> None:
    """Give the parameters the gradients that `pending_gradients` returned.

    Raises:
        CheckpointError: they are not of this network, and the config has no ``allow_mismatch=True``.
    """
    parameters = dict(unwrap_model(runner.model).named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters.get(name)
        if parameter is None or _own_part(parameter).shape != gradient.shape:
            if runner.cfg.get("allow_mismatch"):
                continue
            raise CheckpointError(checkpoint_to_load(runner), f"it has a gradient of {name} that no parameter here fits")
        own = gradient.to(_own_part(parameter), copy=True)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            own = DTensor.from_local(own, mesh, placements, shape=parameter.shape, stride=parameter.stride())
        parameter.grad = own
    runner.logger.info(
        f"The gradients of {len(gradients)} parameters, gathered since the optimizer's last step, are restored: none is lost."
    )
