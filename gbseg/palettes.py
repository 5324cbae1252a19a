"""Class names and palettes for masks, figures and checks.

Those of PASCAL VOC 2012 are the defaults of this package. Data sets with other classes bring their own in their metainfo, as
in MMSegmentation; those without one get `default_palette`. Files of label maps take VOC's palette for labels beyond the
classes, since it has a colour for each of 256.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

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

_LIGHT: tuple[tuple[int, int, int], ...] = (
    *((119, 170, 221), (238, 136, 102), (238, 221, 136), (255, 170, 187), (153, 221, 255)),
    *((68, 187, 153), (187, 204, 51), (170, 170, 0), (221, 221, 221)),
)


def default_palette(class_names: Sequence[str]) -> list[list[int]]:
    """Colours, (red, green, blue), of classes that have none: VOC's for its own classes, else light and distinct ones.

    The first nine are Paul Tol's light scheme (https://personal.sron.nl/~pault), which the colour-blind can tell apart; a pale
    colour blended into an image does not darken it. Beyond nine, each is a light colour as far from all before it as there
    is. A first class that is called background is black, as in VOC.

    Args:
        class_names: of the classes, in their order.
    """
    names = list(class_names)
    if tuple(names) == VOC_CLASSES:
        return [list(colour) for colour in VOC_PALETTE[: len(names)]]
    background = [[0, 0, 0]] if names[:1] == ["background"] else []
    return background + [list(_light_colours()[number % 246]) for number in range(len(names) - len(background))]


@lru_cache
def _light_colours() -> tuple[tuple[int, int, int], ...]:
    """246 colours, none of them dark: Tol's nine, then the farthest from all before, by CIE 1976 distance."""
    levels = np.linspace(15, 255, 16).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[(_lab(grid)[:, 0] > 60) & (_lab(grid)[:, 0] < 95)]
    # white is void, and magenta no class
    taken = np.array([*_LIGHT, (255, 255, 255), (255, 0, 255)], np.float64)
    chosen = list(_LIGHT)
    candidates = _lab(grid)
    nearest = np.linalg.norm(candidates[:, None] - _lab(taken), axis=-1).min(1)
    while len(chosen) < 246:
        farthest = int(nearest.argmax())
        red, green, blue = grid[farthest].astype(int).tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(candidates - candidates[farthest], axis=-1))
    return tuple(chosen)


def _lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB colours in 0..255, (N, 3), under D65."""
    share = colours / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
