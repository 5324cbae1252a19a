"""`gbseg train` from a checkout; see gbseg/cli/train.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="train"))
