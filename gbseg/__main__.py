"""``python -m gbseg``: the same as ``gbseg``."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
