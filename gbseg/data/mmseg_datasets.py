"""mmseg's data sets, without what their first import prints: that an optional package of mmseg's own is missing."""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import Albu

__all__ = ["Albu", "BaseSegDataset"]
