"""Class names and palettes for masks, figures and checks.

Those of PASCAL VOC 2012 are the defaults of this package. Data sets with other classes bring their own in their metainfo, as
in MMSegmentation; without one, VOC's palette serves for them as well, since it has a colour for each of 256 labels.
"""

#: Names of the labels 0..20.
VOC_CLASSES: tuple[str, ...] = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def _every_third_bit(label: int) -> int:
    """Bits 0, 3 and 6 of a label as bits 7, 6 and 5."""
    return (label & 1) << 7 | (label >> 3 & 1) << 6 | (label >> 6 & 1) << 5


#: (red, green, blue) of the labels 0..255 in VOC's indexed PNGs; 255 is "void". A label's bits go to red, green and blue in
#: turn, the lowest bit to the highest position, so that labels close to each other have distant colours.
VOC_PALETTE: tuple[tuple[int, int, int], ...] = tuple(
    (_every_third_bit(label), _every_third_bit(label >> 1), _every_third_bit(label >> 2)) for label in range(256)
)
