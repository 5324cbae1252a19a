"""`gbseg prepare-imagenet` from a checkout; see gbseg/cli/prepare_imagenet.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="prepare-imagenet"))
