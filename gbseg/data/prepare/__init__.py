"""Preparation of data sets: download, unpack, convert, check."""

from gbseg._moved import moved_names

__getattr__ = moved_names(__name__)
