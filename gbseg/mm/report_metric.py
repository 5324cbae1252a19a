"""`VOCMetric`, which the report of a test needs, in configs that evaluate with MMSegmentation's ``IoUMetric``."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric

from gbseg.mm.voc_metric import VOCMetric

__all__ = ["PREFIX", "add_voc_metric", "voc_metrics"]

PREFIX = "gbseg"
"""Before the names of a `VOCMetric` that stands beside another metric."""

_SHARED = frozenset(("ignore_index", "prefix", "collect_device"))
"""Arguments of IoUMetric that VOCMetric has as well."""

_OWN = ("nan_to_num", "output_dir", "format_only")
"""Arguments of IoUMetric with which it gives other scores, or files."""


def voc_metrics(config: Config) -> list[ConfigDict]:
    """The settings of the test evaluator's metrics that are a `VOCMetric`, those that only write predictions included."""
    return [metric for metric in _metrics(config) if _is(config, metric, VOCMetric)]


def add_voc_metric(config: Config, writes: bool = False) -> str | None:
    """Put a `VOCMetric` in place of the test evaluator's first ``IoUMetric``, or beside it, unless there is one.

    It takes the place where the scores are the same, under the same names: of a metric that computes mIoU alone, writes no
    files and shares its prefix with no other. Elsewhere it stands beside it, under the prefix ``gbseg``.

    Args:
        config: is changed in place.
        writes: whether the `VOCMetric` is to write predictions, for which it needs no labels.

    Returns:
        What was done, in a sentence; None where nothing was.
    """
    metrics = _metrics(config)
    found = [metric for metric in metrics if _is(config, metric, IoUMetric) and (writes or not metric.get("format_only"))]
    if not found or voc_metrics(config):
        return None
    iou = found[0]
    voc = ConfigDict(type="VOCMetric", **{key: iou[key] for key in _SHARED & set(iou)})
    others = [metric for metric in metrics if metric is not iou and _prefix(metric) == _prefix(iou)]
    # 0 is a value of nan_to_num
    has_own = any(iou.get(key) is not None and iou[key] is not False for key in _OWN)
    if iou.get("iou_metrics", "mIoU") in ("mIoU", ["mIoU"], ("mIoU",)) and not others and not has_own:
        metrics = [voc if metric is iou else metric for metric in metrics]
        done = "VOCMetric replaces IoUMetric for the report: the same scores, unrounded."
    else:
        voc.prefix = f"{iou.prefix}/{PREFIX}" if iou.get("prefix") else PREFIX
        if iou.get("format_only"):
            voc.format_only = True
        metrics.append(voc)
        done = f"VOCMetric stands beside IoUMetric for the report: its scores are {voc.prefix}/mIoU and so on."
    if isinstance(config.test_evaluator, dict) and "metrics" in config.test_evaluator:
        config.test_evaluator["metrics"] = metrics
    else:
        config.test_evaluator = metrics
    return done


def _metrics(config: Config) -> list[Any]:
    """The settings of the test evaluator's metrics."""
    evaluator: Any = config.test_evaluator
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:
        evaluator = evaluator["metrics"]
    return list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]


def _prefix(metric: Any) -> Any:
    return metric.get("prefix") if isinstance(metric, Mapping) else getattr(metric, "prefix", None)


def _is(config: Config, metric: Any, kind: type) -> bool:
    """Whether a metric's settings are of a class; a name may have a scope, and a subclass may compute anything."""
    if not isinstance(metric, Mapping):
        return False
    name = metric.get("type")
    if not isinstance(name, str):
        return name is kind
    # the end of it: looking up a scope that is not installed raises
    if name.rpartition(".")[2] != kind.__name__:
        return False
    with METRICS.switch_scope_and_registry(config.get("default_scope", "mmseg")) as registry:
        return registry.get(name) is kind
