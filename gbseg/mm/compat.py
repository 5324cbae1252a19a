"""Every reliance on what MMEngine, MMSegmentation and MMPretrain do not promise."""

import io
from contextlib import redirect_stdout

# their first import prints that an optional package is missing
with redirect_stdout(io.StringIO()):
    from mmpretrain.datasets import CustomDataset
    from mmpretrain.models.heads import LinearClsHead
    from mmpretrain.structures import DataSample
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import Albu

__all__ = ["Albu", "BaseSegDataset", "CustomDataset", "DataSample", "LinearClsHead"]
