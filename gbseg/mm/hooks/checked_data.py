"""Check images and masks of any data set where they are read, and say so where no pixel has a label."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn import ModuleList

from gbseg.data.images import MAX_PIXELS
from gbseg.mm.compat import unwrap_model
from gbseg.mm.datasets.sample_checks import check_samples
from gbseg.mm.resumable_sampler import iterations_per_epoch

__all__ = ["LabelledPixelsHook", "SampleCheckHook"]


@HOOKS.register_module()
class SampleCheckHook(Hook):
    """Put the checks of `gbseg.mm.datasets.sample_checks` into the pipelines of a run's data sets, whoever's they are.

    gbseg's commands add it to every run; for mmseg's own tools: ``custom_hooks = [dict(type='SampleCheckHook')]``.

    Args:
        max_pixels: the most pixels that an image or a mask may have.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels

    def before_train(self, runner: Runner) -> None:
        """Check the training data."""
        check_samples(runner.train_dataloader.dataset, self.max_pixels, _head(runner))

    def before_val(self, runner: Runner) -> None:
        """Check the validation data."""
        check_samples(runner.val_dataloader.dataset, self.max_pixels, _head(runner))

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        check_samples(runner.test_dataloader.dataset, self.max_pixels, _head(runner))


@HOOKS.register_module()
class LabelledPixelsHook(Hook):
    """Say so where no pixel has a label: such a network trains at a loss of 0, and its scores are NaN.

    In training it warns after ``patience`` iterations, or at the end of a shorter run, and ends a run in whose first epoch no
    pixel had a label. After a validation or a test it warns. Sets without label maps are not looked at. gbseg's commands add it
    to every run.

    Args:
        patience: iterations without a labelled pixel before the warning.

    Raises:
        ValueError: in training, an epoch was without a labelled pixel.
    """

    def __init__(self, patience: int = 50) -> None:
        self.patience = patience
        self._trained = self._evaluated = _Unlabelled()

    def before_train(self, runner: Runner) -> None:
        """Start to count."""
        self._trained = _Unlabelled()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the labels of a batch, until one is found."""
        if not self._trained.add(runner, data_batch):
            return
        batches = self._trained.batches
        epoch = None
        # data without a length
        with suppress(ValueError):
            epoch = iterations_per_epoch(runner.train_dataloader)
        if batches == epoch:
            raise ValueError(f"nothing can be learned: {self._trained.finding('training')}")
        if batches == self.patience:
            runner.logger.warning(f"Nothing was learned yet: {self._trained.finding('training')}")

    def after_train(self, runner: Runner) -> None:
        """Warn after a short run."""
        if self._trained.batches and self._trained.batches < self.patience:
            runner.logger.warning(f"Nothing was learned: {self._trained.finding('training')}")

    def before_val_epoch(self, runner: Runner) -> None:
        """Start to count."""
        self._evaluated = _Unlabelled()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the labels of a batch, until one is found."""
        self._evaluated.add(runner, data_batch)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Warn where there was none."""
        if self._evaluated.batches:
            runner.logger.warning(f"These scores mean nothing: {self._evaluated.finding('evaluation')}")

    before_test_epoch = before_val_epoch
    after_test_iter = after_val_iter
    after_test_epoch = after_val_epoch


class _Unlabelled:
    """Batches and images with label maps in which no pixel has a label; zero again, for good, once a pixel has one."""

    def __init__(self) -> None:
        self.batches = self.images = 0
        self.ignored = 255
        self.has_labels = False

    def add(self, runner: Runner, batch: Any) -> bool:
        """Look at a batch; whether no pixel of it or an earlier one has a label."""
        if self.has_labels or not isinstance(batch, dict):
            return False
        samples = batch.get("data_samples")
        # test-time augmentation gives a list for every image; classes may be one tensor for all
        samples = _flat(samples) if isinstance(samples, list | tuple) else ()
        maps = [sample.gt_sem_seg.data for sample in samples if hasattr(sample, "gt_sem_seg")]
        if not maps:
            # a classifier's samples, or a set without labels
            self.has_labels = True
            return False
        self.ignored = getattr(_head(runner), "ignore_index", 255)
        self.has_labels = any(bool((labels != self.ignored).any()) for labels in maps)
        self.batches, self.images = (0, 0) if self.has_labels else (self.batches + 1, self.images + len(maps))
        return not self.has_labels

    def finding(self, what: str) -> str:
        """What was seen, and what to do."""
        return (
            f"no pixel has a label in the first {self.images:,} images of the {what}, all are {self.ignored} (ignored); "
            "look at the masks: gbseg doctor CONFIG, gbseg browse CONFIG."
        )


def _head(runner: Runner) -> Any:
    """The decode head of a segmentor, the last one of several; None of other models."""
    heads = getattr(unwrap_model(runner.model), "decode_head", None)
    return heads[-1] if isinstance(heads, ModuleList) else heads


def _flat(samples: Any) -> Iterator[Any]:
    for sample in samples:
        yield from _flat(sample) if isinstance(sample, list | tuple) else (sample,)
