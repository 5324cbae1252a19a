"""Whether a classifier's data have the classes that its head has: a wrong number would train, and score, without a word."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

__all__ = ["ClassCountHook"]


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Before training and testing, compare the classes of the data with ``num_classes`` of a classifier's ``head``.

    Data sets that do not name their classes (``metainfo['classes']``) and models without such a head are left alone.
    `gbseg.mm` adds it to every run; for MMPretrain's own tools: ``custom_hooks = [dict(type='ClassCountHook')]``.

    Raises:
        ValueError: while training or testing; another number of classes, or training and validation name other classes.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the training data, and at those of the validation."""
        train = _require_count(runner, runner.train_dataloader.dataset, "training")
        if runner.val_loop is None:
            return
        val = _require_count(runner, runner.val_dataloader.dataset, "validation")
        if train and val and (different := [pair for pair in zip(train, val, strict=True) if pair[0] != pair[1]]):
            one, other = different[0]
            raise ValueError(
                f"{len(different):,} of the classes have other names in the training data than in the validation data, the "
                f"first one {one!r} and {other!r}: a label would mean two things. Give both the same folders of classes."
            )

    def before_test(self, runner: Runner) -> None:
        """Look at the test data."""
        _require_count(runner, runner.test_dataloader.dataset, "test")


def _require_count(runner: Runner, dataset: Any, title: str) -> tuple[str, ...]:
    """The classes that a data set names, none if it does not."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    wanted = getattr(getattr(model, "head", None), "num_classes", None)
    classes = tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    if not isinstance(wanted, int) or not classes:
        return ()
    if len(classes) != wanted:
        place = getattr(dataset, "img_prefix", "") or getattr(dataset, "data_root", "")
        raise ValueError(
            f"the {title} data{f' in {place}' if place else ''} have {len(classes):,} classes and the head has "
            f"num_classes={wanted}: set model.head.num_classes={len(classes)} (in the config, or by --cfg-options), or give "
            f"data of {wanted:,} classes."
        )
    return classes
