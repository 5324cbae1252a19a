"""Check the number of classes of data and head: with a wrong number a classifier trains, and is scored, without an error."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.mm.compat import unwrap_model
from gbseg.mm.datasets.array_dataset import ArrayImages
from gbseg.mm.hooks.train_test_overlap import unwrap
from gbseg.mm.models.classification_preprocessor import ClsDataPreprocessor

__all__ = ["ClassCountHook"]


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Before training and testing, compare the classes of the data with ``num_classes`` of a classifier's ``head``.

    Data sets that do not name their classes (``metainfo['classes']``) and models without such a head are not checked. Mixup and
    CutMix need the number of classes as well: where ``data_preprocessor.num_classes`` is not set, the head's is taken.
    gbseg's commands add it to every run; for MMPretrain's own tools: ``custom_hooks = [dict(type='ClassCountHook')]``.

    Raises:
        ValueError: before training or testing, the numbers differ (also that of a preprocessor that mixes), or training and
            validation data name different classes.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation data, and the preprocessor."""
        _require_mixing(unwrap_model(runner.model), runner.train_dataloader.dataset)
        train = _require_count(runner, runner.train_dataloader.dataset, "training")
        if runner.val_loop is None:
            return
        val = _require_count(runner, runner.val_dataloader.dataset, "validation")
        if train and val and (different := [pair for pair in zip(train, val, strict=True) if pair[0] != pair[1]]):
            train_name, val_name = different[0]
            raise ValueError(
                f"{len(different):,} of the classes have other names in the training data than in the validation data, the "
                f"first one {train_name!r} and {val_name!r}: a label would mean two things. Give both "
                "the same folders of classes."
            )

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        _require_count(runner, runner.test_dataloader.dataset, "test")


def _require_mixing(model: Any, dataset: Any) -> None:
    """Give a preprocessor that mixes the head's number of classes, if it has none, and refuse one that would not mix."""
    preprocessor: Any = getattr(model, "data_preprocessor", None)
    classes = getattr(getattr(model, "head", None), "num_classes", None)
    if not getattr(preprocessor, "to_onehot", False) or not isinstance(classes, int):
        return
    # a config may give MMPretrain's class instead of its name
    if not isinstance(preprocessor, ClsDataPreprocessor) and any(isinstance(part, ArrayImages) for part in unwrap(dataset)):
        raise ValueError(
            f"{type(preprocessor).__module__}.{type(preprocessor).__name__} would not mix images of ArrayImages: write "
            "model.data_preprocessor.type='ClsDataPreprocessor', which means gbseg's."
        )
    if preprocessor.num_classes is None:
        preprocessor.num_classes = classes
    elif preprocessor.num_classes != classes:
        raise ValueError(
            f"model.data_preprocessor.num_classes={preprocessor.num_classes}, by which labels are mixed, and the head has "
            f"num_classes={classes}: set both to the number of classes, or leave the first away."
        )


def _require_count(runner: Runner, dataset: Any, title: str) -> tuple[str, ...]:
    """The classes that a data set names; () if it names none, or if the model has no such head."""
    num_classes = getattr(getattr(unwrap_model(runner.model), "head", None), "num_classes", None)
    classes = tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    if not isinstance(num_classes, int) or not classes:
        return ()
    if len(classes) != num_classes:
        folder = getattr(dataset, "img_prefix", "") or getattr(dataset, "data_root", "")
        raise ValueError(
            f"the {title} data{f' in {folder}' if folder else ''} have {len(classes):,} classes and the head has "
            f"num_classes={num_classes}: set model.head.num_classes={len(classes)} (in the config, or by --cfg-options), or "
            f"give data of {num_classes:,} classes."
        )
    return classes
