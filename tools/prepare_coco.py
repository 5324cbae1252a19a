"""`gbseg prepare-coco` from a checkout; see gbseg/cli/prepare_coco.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="prepare-coco"))
