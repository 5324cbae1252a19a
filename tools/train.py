"""`gbseg train` from a checkout; see gbseg/engine/cli.py."""

from gbseg.engine.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="train"))
