"""Find images that are both trained on and evaluated on: the score on them is not a held-out score."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from gbseg.data.lists import abbreviate
from gbseg.mm.datasets.sample_checks import inner_datasets

__all__ = ["Overlap", "OverlapHook", "find_overlap", "image_paths"]

# SBD and VOC keep the same photographs in different folders, under the same ids
_VOC_ID = re.compile(r"20(0[5-9]|1[0-2])_\d{6}")


class Overlap(NamedTuple):
    """Images that training and evaluation share.

    Attributes:
        split: which list is evaluated: 'val', 'test' or 'val/test'.
        shared: the evaluated images that are trained on, as paths, sorted.
        trained: number of images of the training list.
        evaluated: number of images of the evaluated list.
    """

    split: str
    shared: list[Path]
    trained: int
    evaluated: int

    def sentence(self) -> str:
        """How many and which, in one sentence."""
        ids = abbreviate([path.stem for path in self.shared])
        return (
            f"{len(self.shared):,} of the {self.evaluated:,} images of the {self.split} list are also among the "
            f"{self.trained:,} that are trained on ({ids})"
        )

    def meaning(self) -> str:
        """What follows for the score, and what to do."""
        return (
            f"A score on {self.split} is not a held-out score: the network has seen these answers, so it comes out too high "
            "and must not be reported or compared. Train on another list, or evaluate on images that are not trained on."
        )


def image_paths(dataset: Any) -> list[Path]:
    """The image files of a data set of the MM packages, also of a wrapped one; [] where it gives no ``img_path``."""
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    parts = [part for part in unwrap(dataset) if hasattr(part, "get_data_info")]
    paths = [part.get_data_info(index).get("img_path") for part in parts for index in range(len(part))]
    return [Path(path) for path in dict.fromkeys(str(path) for path in paths if path is not None)]


def unwrap(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers, whose own length may be that of all repetitions."""
    inner = inner_datasets(dataset)
    for part in inner:
        yield from unwrap(part)
    if not inner:
        yield dataset


def find_overlap(train: Sequence[Path], evaluated: Sequence[Path], split: str) -> Overlap | None:
    """The evaluated images that are also trained on; None if there are none.

    Two paths are the same image if they are the same file (links followed), or if their names are the same VOC id
    (``2007_000032``), since SBD keeps VOC's photographs in another folder. Other equal names in different folders
    (``train/0001.png``, ``val/0001.png``) mean nothing.
    """
    files = {path.resolve() for path in train}
    ids = {path.stem for path in train if _VOC_ID.fullmatch(path.stem)}
    shared = sorted(path for path in evaluated if path.stem in ids or path.resolve() in files)
    return Overlap(split, shared, len(train), len(evaluated)) if shared else None


def evaluated_splits(config: Mapping[str, Any]) -> dict[str, dict]:
    """The dataloaders that a config evaluates on, by split; 'val/test' where both have the same data."""
    loaders = {split: loader for split in ("val", "test") if (loader := config.get(f"{split}_dataloader"))}
    if len(loaders) == 2 and loaders["val"]["dataset"] == loaders["test"]["dataset"]:
        return {"val/test": loaders["val"]}
    return loaders


@HOOKS.register_module()
class OverlapHook(Hook):
    """At the start of training, warn of images that are both trained on and evaluated on.

    gbseg's commands add it to every run; for mmseg's own tools: ``custom_hooks = [dict(type='OverlapHook')]``.
    """

    priority = "VERY_LOW"

    def before_train(self, runner: Runner) -> None:
        """Compare the lists of images."""
        if not is_main_process():
            return
        train = image_paths(runner.train_dataloader.dataset)
        for split, loader in evaluated_splits(runner.cfg).items():
            if split == "test":
                try:
                    evaluated = image_paths(DATASETS.build(dict(loader["dataset"])))
                except (OSError, AssertionError, ValueError):
                    # training needs no test set
                    continue
            elif runner.val_loop is None:
                continue
            else:
                evaluated = image_paths(runner.val_dataloader.dataset)
            overlap = find_overlap(train, evaluated, split)
            if overlap is not None:
                line = "!" * 100
                message = f"TRAINING AND EVALUATION OVERLAP: {overlap.sentence()}.\n{overlap.meaning()}"
                runner.logger.warning(f"\n{line}\n{message}\n{line}")
