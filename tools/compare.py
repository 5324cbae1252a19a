"""`gbseg compare` from a checkout; see gbseg/cli/compare.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="compare"))
