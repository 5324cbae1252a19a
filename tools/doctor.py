"""`gbseg doctor` from a checkout; see gbseg/cli/doctor.py."""

from gbseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(command="doctor"))
