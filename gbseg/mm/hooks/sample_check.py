"""Check images and masks of any data set where they are read, and say so where no pixel has a label."""

from collections.abc import Sized
from contextlib import suppress
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn import ModuleList

from gbseg.data.images import MAX_PIXELS
from gbseg.mm.compat import unwrap_model
from gbseg.mm.datasets.sample_checks import check_samples, flat_samples
from gbseg.mm.resumable_sampler import iterations_per_epoch

__all__ = ["LabelledPixelsHook", "SampleCheckHook"]


@HOOKS.register_module()
class SampleCheckHook(Hook):
    """Put the checks of `gbseg.mm.datasets.sample_checks` into the pipelines of a run's data sets, whoever's they are.

    gbseg's commands add it to every run; for mmseg's own tools: ``custom_hooks = [dict(type='SampleCheckHook')]``.

    Args:
        max_pixels: the most pixels that an image or a mask may have.

    Raises:
        ValueError: a data set has no samples.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels

    def before_train(self, runner: Runner) -> None:
        """Check the training data."""
        self._check(runner, "train_dataloader")

    def before_val(self, runner: Runner) -> None:
        """Check the validation data."""
        self._check(runner, "val_dataloader")

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        self._check(runner, "test_dataloader")

    def _check(self, runner: Runner, key: str) -> None:
        dataset = getattr(runner, key).dataset
        if isinstance(dataset, Sized) and not len(dataset):
            name = type(dataset).__name__
            raise ValueError(f"{key}.dataset: {name} has no samples. Look at its data_root, folders and list.")
        check_samples(dataset, self.max_pixels, _head(runner))


@HOOKS.register_module()
class LabelledPixelsHook(Hook):
    """Say so where no pixel has a label: such a network trains at a loss of 0, and its scores are NaN.

    In training it warns after ``patience`` iterations, or at the end of a shorter run. It ends a run in whose first epoch, and
    in at least ``patience`` iterations, no process saw a pixel with a label: random crops may miss the few of a small set.
    After a validation or a test it warns. Sets without label maps are not looked at. gbseg's commands add it to every run.

    Args:
        patience: iterations without a labelled pixel before the warning.

    Raises:
        ValueError: in training, an epoch was without a labelled pixel.
    """

    def __init__(self, patience: int = 50) -> None:
        self.patience = patience
        self._trained = self._evaluated = _Unlabelled()
        self._iterations = 0
        self._last_chance: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Start to count."""
        self._trained = _Unlabelled()
        self._iterations = 0
        self._last_chance = None
        # data without a length
        with suppress(ValueError):
            self._last_chance = max(iterations_per_epoch(runner.train_dataloader), self.patience)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the labels of a batch, until one is found."""
        unlabelled = self._trained.add(runner, data_batch)
        self._iterations += 1
        if self._iterations == self._last_chance:
            # of several processes, one may have none of the labels: all go on, or all end
            labelled = torch.tensor(int(not unlabelled))
            all_reduce(labelled)
            if not labelled:
                raise ValueError(f"nothing can be learned: {self._trained.finding('training')}")
        if unlabelled and self._iterations == self.patience:
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
        samples = flat_samples(samples) if isinstance(samples, list | tuple) else ()
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
