"""How good a segmentation is: the confusion matrix of a whole set, and VOC's scores read off it.

`confusion_matrix`, `scores` and `Calibration` need torch alone. `VOCMetric`, the scores as a metric for MMEngine's
runners, is there where mmengine is installed; importing this package registers it.
"""

from importlib.util import find_spec

from gbseg.evaluation.calibration import Calibration, Reliability
from gbseg.evaluation.confusion import Scores, confusion_matrix, scores

__all__ = ["Calibration", "Reliability", "Scores", "confusion_matrix", "scores"]

if find_spec("mmengine") is not None:
    from gbseg.evaluation.metric import VOCMetric

    __all__ += ["VOCMetric"]
