"""Evaluation of segmentations: the confusion matrix of a whole set, VOC's scores of it, and the calibration error.

Only torch is needed. `gbseg.mm.voc_metric.VOCMetric` is the metric for MMEngine.
"""

from gbseg._moved import add_moved_names, register_as_before
from gbseg.evaluation.calibration import Calibration, Reliability
from gbseg.evaluation.confusion import Scores, confusion_matrix, scores

__all__ = ["Calibration", "Reliability", "Scores", "confusion_matrix", "scores"]

add_moved_names(__name__)
register_as_before()
