"""What PASCAL VOC 2012 calls its labels and how its indexed PNGs colour them."""

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


# VOC deals a label's bits out to red, green and blue in turn, lowest bit to highest place: labels that are close as numbers
# are far apart as colours, and every index of a PNG has one, 255 ("void") included.
VOC_PALETTE: tuple[tuple[int, int, int], ...] = tuple(
    (_every_third_bit(label), _every_third_bit(label >> 1), _every_third_bit(label >> 2)) for label in range(256)
)
