"""`gbseg browse` from a checkout; see gbseg/cli/browse.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="browse"))
