"""Data sets: PASCAL VOC and SBD, in-memory arrays, generated scenes."""
