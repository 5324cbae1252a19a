"""`gbseg search-boost` from a checkout; see gbseg/cli/search_boost.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="search-boost"))
