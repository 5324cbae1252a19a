"""Preparation of data sets: download, unpack, convert, check."""

from gbseg._moved import add_moved_names

add_moved_names(__name__)
