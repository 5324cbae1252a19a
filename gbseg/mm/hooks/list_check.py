"""Refuse to evaluate on a data set whose list of images has a fault; training only warns of it."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from gbseg.mm.datasets.list_faults import require_sound_list
from gbseg.mm.hooks.train_test_overlap import unwrap

__all__ = ["ListCheckHook"]


@HOOKS.register_module()
class ListCheckHook(Hook):
    """Before training, validation and testing, look at the ``list_faults`` of the data sets that are evaluated on.

    gbseg's data sets have them: images that are listed twice, and masks whose images are missing. When the training data are
    built, each is a warning. gbseg's commands add the hook to every run; for MMSegmentation's own tools:
    ``custom_hooks = [dict(type='ListCheckHook')]``.

    Raises:
        ValueError: the validation or test data have a fault.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the validation data, before hours of training."""
        if runner.val_loop is not None:
            _require_sound_lists(runner.val_dataloader, "validation")

    def before_val(self, runner: Runner) -> None:
        """Check the validation data where nothing is trained."""
        _require_sound_lists(runner.val_dataloader, "validation")

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        _require_sound_lists(runner.test_dataloader, "test")


def _require_sound_lists(loader: DataLoader, title: str) -> None:
    for dataset in unwrap(loader.dataset):
        require_sound_list(dataset, title)
