"""`gbseg class-weights` from a checkout; see gbseg/cli/class_weights.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="class-weights"))
