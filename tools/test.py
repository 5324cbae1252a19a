"""`gbseg test` from a checkout; see gbseg/cli/test.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="test"))
