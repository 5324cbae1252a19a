"""Data sets: PASCAL VOC and generated scenes in its layout."""
