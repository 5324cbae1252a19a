"""`gbseg predict` from a checkout; see gbseg/cli/predict.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="predict"))
