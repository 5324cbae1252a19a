"""Several processes train with the gradient of one: the losses divide by the pixels of all processes."""

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.mm.compat import unwrap_model

__all__ = ["SyncDivisorHook"]


@HOOKS.register_module()
class SyncDivisorHook(Hook):
    """Switch on ``sync_divisor`` in the losses of a model that several processes train, and say so once in the log.

    Every loss counts that has the attribute ``sync_divisor`` (`gbseg.losses.modules.GuardedLoss`); one whose config says
    ``sync_divisor=False`` keeps the mean of its own process. ``gbseg train`` has this hook in every run.
    """

    def before_train(self, runner: Runner) -> None:
        """Set the attribute where the config leaves it open."""
        if get_world_size() < 2:
            return
        modules = dict(unwrap_model(runner.model).named_modules())
        undecided = [name for name, module in modules.items() if getattr(module, "sync_divisor", True) is None]
        for name in undecided:
            modules[name].sync_divisor = True
        if undecided:
            names = ", ".join(name or type(modules[name]).__name__ for name in undecided)
            runner.logger.info(
                f"While training, the mean of {names} is over all {get_world_size()} processes (sync_divisor), and "
                "their gradient is that of one process with the whole batch; with sync_divisor=False each has its own."
            )
