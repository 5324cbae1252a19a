"""`gbseg prepare-voc` from a checkout; see gbseg/cli/prepare_voc.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="prepare-voc"))
