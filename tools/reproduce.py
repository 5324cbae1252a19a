"""`gbseg reproduce` from a checkout; see gbseg/cli/reproduce.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="reproduce"))
