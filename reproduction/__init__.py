"""The paper's tables and figures: grids of runs, their summaries, and a verdict on each claim.

Not part of the installed package: run from a checkout by ``tools/reproduce.py`` and ``tools/search_boost.py``.
"""

from pathlib import Path

__all__ = ["CONFIGS"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The configs of the checkout; ``CONFIGS / "reproduction"`` holds one file per claim."""
