"""The gradients between two steps of the optimizer, where ``accumulative_counts`` gathers those of several iterations."""

from collections.abc import Mapping

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.distributed.tensor import DTensor

from gbseg.mm.checkpoint_loading import CheckpointError
from gbseg.mm.compat import checkpoint_to_load, unwrap_model

__all__ = ["pending_gradients", "restore_gradients"]


def pending_gradients(runner: Runner) -> dict[str, Tensor]:
    """The gradients of this process by parameter that no step has been taken with yet; empty right after a step."""
    wrapper = runner.optim_wrapper
    wrappers = list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    pending = {
        id(parameter)
        for wrapper in wrappers
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
        CheckpointError: they are not of this network.
    """
    parameters = dict(unwrap_model(runner.model).named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters.get(name)
        if parameter is None or _own_part(parameter).shape != gradient.shape:
            raise CheckpointError(checkpoint_to_load(runner), f"it has a gradient of {name} that no parameter here fits")
        own = gradient.to(_own_part(parameter), copy=True)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            own = DTensor.from_local(own, mesh, placements, shape=parameter.shape, stride=parameter.stride())
        parameter.grad = own
    runner.logger.info(
        f"The gradients of {len(gradients)} parameters, gathered since the optimizer's last step, are restored: none is lost."
    )
