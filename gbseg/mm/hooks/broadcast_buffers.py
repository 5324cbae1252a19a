"""Several processes evaluate one network: the buffers of rank 0, which are those that a checkpoint holds."""

from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.mm.compat import unwrap_model

__all__ = ["BroadcastBuffersHook"]


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Give every process the buffers of rank 0 before a validation.

    MMEngine lets each process keep its own running statistics of batch normalisation. Each would evaluate its share of the
    images with a network of its own, and a resumed run, in which all have those of rank 0, would get other scores.
    """

    # after EMAHook has put the averaged weights in place
    priority = "VERY_LOW"

    def before_val_epoch(self, runner: Runner) -> None:
        """Broadcast what a checkpoint would hold; others, such as records of bad labels, belong to their process."""
        if get_world_size() > 1:
            network = unwrap_model(runner.model)
            stored = network.state_dict()
            for name, buffer in network.named_buffers():
                if name in stored:
                    broadcast(buffer, src=0)
