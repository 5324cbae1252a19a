"""Generated scenes in PASCAL VOC's layout: the data set that the demo trains on where no real one is at hand.

A scene is a cluttered background and one to four objects of the 20 VOC classes. A class is a silhouette, a texture and
a range of hues; classes share hues and textures, and so does the clutter, so that no single cue gives the label.

H, W: height and width of a scene in pixels. N: points. Unit coordinates of a silhouette: x to the right, y downwards.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from gbseg.data.masks import write_mask
from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES

VOID = 255
FORMAT = 2  # raise it with every change that changes a byte of what write_scenes writes

# A class: name, hue (degrees) and its spread (+-), saturation, value | the second colour's hue, saturation, value | texture:
# pattern, period (unit lengths), angle (degrees) | parts, each `tone shape numbers`, later ones on top. Tones: b the textured
# body, a the second colour, d dark, l light. Shapes: box x0 y0 x1 y1, oval cx cy rx ry, ring cx cy radius width,
# line x0 y0 x1 y1 width, poly x y x y ...; one that ends in 2 is drawn at x and at -x, where the two must not overlap.
_TABLE = """
aeroplane 215 20 .2 .85 | 5 .75 .75 | stripes .22 90 | b poly .25 0 -.05 0 -.55 .85 -.3 .85
 b poly .25 0 -.05 0 -.4 -.75 -.2 -.75; b oval 0 0 1.1 .24; a poly -.7 0 -1 0 -1.2 -.45 -1 -.45; d oval .85 -.05 .12 .07
bicycle 350 35 .8 .8 | 50 .6 .9 | plain 1 0 | d ring2 .7 .3 .5 .16; b line -.7 .3 -.2 -.35 .15; b line -.2 -.35 .5 -.35 .15
 b line .5 -.35 .05 .3 .15; b line .05 .3 -.2 -.35 .15; b line .05 .3 -.7 .3 .14; b line .7 .3 .45 -.6 .15
 a line -.4 -.45 -.02 -.45 .17; a line .3 -.65 .65 -.6 .15
bird 45 20 .75 .9 | 25 .9 .5 | waves .2 20 | b poly -.4 .1 -1.1 0 -1.05 .35; b oval 0 .1 .6 .38; b oval .5 -.3 .28 .26
 a poly .7 -.4 1.05 -.25 .7 -.18; a poly -.45 -.05 .3 -.1 -.25 .65; d oval .56 -.36 .06 .06; d line2 .1 .45 .1 .8 .08
boat 205 20 .75 .6 | 205 .15 .9 | stripes .3 0 | b poly -1 .3 1 .3 .65 .85 -.7 .85; d line 0 .3 0 -1 .1
 l poly .08 -.95 .08 .15 .75 .15; l poly -.08 -.7 -.08 .15 -.6 .15
bottle 125 25 .75 .5 | 115 .35 .8 | stripes .3 90 | b oval 0 -.2 .3 .25; b box -.3 -.2 .3 1; b box -.12 -.8 .12 -.2
 a box -.15 -1 .15 -.8; l box -.3 .15 .3 .6
bus 5 20 .85 .75 | 45 .7 .95 | stripes .5 0 | b box -1.1 -.6 1.1 .5; d box2 .55 -.45 1 -.05; d box2 .05 -.45 .45 -.05
 d oval2 .65 .5 .2 .2; l box 1 .15 1.1 .3
car 220 30 .7 .75 | 220 .3 .95 | plain 1 0 | b poly -1.1 0 -.65 -.1 -.4 -.5 .35 -.5 .65 -.1 1.1 .05 1.1 .4 -1.1 .4
 d poly2 .05 -.1 .05 -.4 .3 -.4 .48 -.1; d oval2 .6 .4 .25 .25; l oval 1 .12 .1 .08
cat 30 12 .75 .9 | 25 .85 .35 | stripes .24 65 | b line .3 .7 .85 .4 .18; b line .8 .45 .75 -.1 .17; b oval 0 .4 .45 .6
 b oval 0 -.35 .42 .36; l oval 0 .5 .18 .35; b poly2 .42 -.4 .38 -.95 .05 -.65; d oval2 .16 -.4 .07 .07; a oval 0 -.22 .08 .05
chair 22 10 .7 .55 | 28 .5 .8 | waves .22 80 | b box -.5 -1 -.25 1; b box .3 0 .52 1; b box -.5 -1 -.1 0; b box -.5 -.05 .6 .2
 b line -.2 .1 -.1 1 .16; b line .42 .1 .75 1 .16
cow 35 20 .12 .92 | 20 .5 .15 | patches .5 10 | b oval -.1 0 .85 .42; b box -.8 0 -.6 .85; b box -.45 .1 -.28 .8
 b box .2 .1 .37 .8; b box .45 0 .63 .85; b oval .85 -.3 .3 .24; l line .75 -.5 .65 -.7 .09; l line .95 -.5 1.05 -.7 .09
 a oval 1.08 -.2 .12 .12; d line -.93 -.1 -1 .4 .08
diningtable 355 25 .7 .85 | 40 .1 .95 | checks .34 0 | d line2 .7 .1 .8 .9 .13; b oval 0 -.1 1.1 .42
 b poly -1.1 -.1 1.1 -.1 .9 .35 -.9 .35; l oval2 .35 -.18 .2 .1
dog 28 15 .6 .65 | 30 .2 .95 | patches .34 40 | b line -.6 -.1 -1 -.5 .15; b oval -.05 0 .7 .3; b box2 .42 0 .62 .8
 b box2 .22 .1 .37 .75; b oval .65 -.35 .32 .3; b oval .95 -.27 .22 .15; a oval .5 -.25 .14 .3; d oval 1.12 -.3 .07 .07
horse 18 12 .7 .5 | 15 .7 .25 | fur .1 0 | d line -.75 -.15 -1 .5 .2; b oval -.1 0 .7 .32; b box -.72 0 -.55 1
 b box -.45 .1 -.3 .95; b box .2 .1 .35 .95; b box .4 0 .56 1; b poly .3 -.15 .65 .1 1 -.7 .7 -.85
 b poly .65 -.85 .95 -.95 1.3 -.5 1.15 -.4 .85 -.55; d line .35 -.2 .72 -.9 .16
motorbike 40 25 .85 .9 | 0 0 .25 | checks .26 45 | d oval2 .7 .4 .42 .42; l oval2 .7 .4 .16 .16
 b poly -.95 -.2 -.1 -.1 .2 -.45 .6 -.35 .6 0 .2 .5 -.3 .5; a box -.3 .2 .25 .5; d line .7 .4 .4 -.65 .12
 d line .2 -.65 .55 -.65 .12
person 230 60 .65 .7 | 22 .45 .9 | stripes .2 0 | d line2 .15 .35 .22 1.1 .24; a line2 .3 -.35 .6 .3 .17
 b poly -.42 -.5 .42 -.5 .32 .45 -.32 .45; a oval 0 -.8 .25 .3; d oval 0 -.98 .25 .15
pottedplant 115 25 .8 .6 | 18 .75 .65 | leaves .2 30 | b oval 0 -.3 .25 .65; b oval2 .45 -.35 .4 .25; b oval2 .35 -.7 .25 .3
 a poly -.45 .3 .45 .3 .32 1 -.32 1; a box -.52 .2 .52 .4
sheep 45 15 .15 .95 | 35 .25 .6 | dots .18 45 | d box2 .38 .2 .52 .8; d box2 .1 .2 .24 .8; b oval 0 0 .75 .42
 b oval2 .43 -.15 .35 .35; b oval 0 -.25 .4 .35; d oval .8 -.15 .25 .2; d oval .6 -.3 .14 .08
sofa 265 45 .55 .65 | 280 .25 .9 | dots .26 0 | d box2 .75 .5 .9 .75; b box -.85 -.6 .85 .2; a box -.85 0 .85 .2
 b oval2 .95 0 .22 .2; b box2 .75 0 1.15 .6; b box -.8 .15 .8 .55
train 150 30 .7 .55 | 50 .75 .9 | bricks .3 0 | b poly -1.2 -.5 .6 -.5 1.1 -.1 1.2 .45 -1.2 .45; l box -1.2 .1 1.15 .25
 d box -1.05 -.35 -.7 -.05; d box -.5 -.35 -.15 -.05; d poly .3 -.35 .55 -.35 .85 -.05 .3 -.05; d oval2 .8 .5 .17 .17
 d oval2 .3 .5 .17 .17
tvmonitor 200 60 .55 .65 | 200 .2 .3 | stripes .12 0 | d box -1 -.8 1 .55; b box -.85 -.66 .85 .4; d box -.12 .5 .12 .8
 d box -.5 .75 .5 .92; l oval .85 .47 .05 .04
"""

# The share of the second colour (cut to 0..1) at u, v: across and along the texture's angle, one period being 2 pi.
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v: 0 * u,
    "stripes": lambda u, v: 0.5 + 2 * np.sin(v),
    "waves": lambda u, v: 0.5 + 2 * np.sin(v + 1.5 * np.sin(0.5 * u)),
    "checks": lambda u, v: 0.5 + 3 * np.sin(u) * np.sin(v),
    "dots": lambda u, v: 2 * (np.cos(u) + np.cos(v) - 0.5),
    "bricks": lambda u, v: 4 * np.maximum(np.cos(v), np.cos(0.5 * u + np.pi / 2 * np.floor(v / (2 * np.pi)))) - 3,
    "leaves": lambda u, v: 0.25 + 0.6 * np.sin(u + 2 * np.sin(v)) * np.cos(2 * v - u),
    "patches": lambda u, v: 4 * np.sin(u + 1.4 * np.sin(0.7 * v)) * np.sin(v + 1.4 * np.sin(0.6 * u + 1)),
    "fur": lambda u, v: 0.5 + 0.8 * np.sin(97.3 * u + 41.1 * v) * np.sin(63.7 * v + 11 * u * v),
}
_TONES = {"b": 1, "a": 2, "d": 3, "l": 4}
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1)


class _Kind(NamedTuple):
    """What an object is drawn from; `parts` are pairs of a tone and its contours, (N, 2) in unit coordinates."""

    body: tuple[float, ...]
    second: tuple[float, ...]
    texture: tuple[str, float, float]
    parts: list[tuple[int, list[np.ndarray]]]


def _contours(shape: str, *n: float) -> list[np.ndarray]:
    if shape.endswith("2"):
        return [contour * side for contour in _contours(shape[:-1], *n) for side in ((1, 1), (-1, 1))]
    if shape == "box":
        return [np.array([(n[0], n[1]), (n[2], n[1]), (n[2], n[3]), (n[0], n[3])])]
    if shape == "oval":
        return [np.array(n[:2]) + np.array(n[2:]) * _CIRCLE]
    if shape == "ring":  # the inner contour cuts a hole: fillPoly fills by the even-odd rule
        return [np.array(n[:2]) + radius * _CIRCLE for radius in (n[2], n[2] - n[3])]
    if shape == "line":
        start, end = np.array(n[:2]), np.array(n[2:4])
        side = (end - start)[::-1] * (-1, 1) * n[4] / 2 / np.hypot(*(end - start))
        return [np.stack((start + side, end + side, end - side, start - side))]
    return [np.array(n).reshape(-1, 2)]


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """The table's classes, each centred on its bounding box and scaled to one unit of area, so that none is rare."""
    kinds = {}
    for row in re.split(r"\n(?! )", _TABLE.strip()):
        (name, *body), second, (pattern, period, angle), _ = (field.split() for field in row.split("|"))
        drawn = []
        for tone, shape, *numbers in (part.split() for part in re.split("[;\n]", row.rpartition("|")[2])):
            drawn.append((_TONES[tone], _contours(shape, *map(float, numbers))))
        corners = np.concatenate([contour for _, contours in drawn for contour in contours])
        centre, mask = (corners.min(axis=0) + corners.max(axis=0)) / 2, np.zeros((300, 300), np.uint8)
        for _, contours in drawn:
            cv2.fillPoly(mask, [np.rint(100 * (contour - centre) + 150).astype(np.int32) for contour in contours], 1)
        unit = float(np.sqrt(mask.sum()) / 100)
        parts = [(tone, [(contour - centre) / unit for contour in contours]) for tone, contours in drawn]
        texture = pattern, float(period) / unit, float(angle)
        kinds[name] = _Kind(tuple(map(float, body)), tuple(map(float, second)), texture, parts)
    return kinds


def _clutter(rng: np.random.Generator) -> _Kind:
    """An angular blob in any hue and texture: what is in sight but of no class."""
    radius = rng.uniform(0.25, 0.9, (int(rng.integers(3, 8)), 1))
    turn = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    blob = radius * np.stack((np.cos(turn), np.sin(turn)), axis=1)
    hues = rng.uniform(0, 360) + rng.uniform(-40, 40, 2)
    body, second = ((hue, *rng.uniform((0.1, 0.3), (0.65, 0.9))) for hue in hues)
    texture = str(rng.choice(list(_PATTERNS))), rng.uniform(0.15, 0.6), rng.uniform(0, 180)
    return _Kind((body[0], 0, *body[1:]), second, texture, [(_TONES["b"], [blob])])


def _texture(rng: np.random.Generator, pattern: str, period: float, angle: float, points: np.ndarray) -> np.ndarray:
    """The second colour's share at points (..., 2), with a random phase; float32, the points' shape without the last axis."""
    turn = np.radians(angle)
    axes = 2 * np.pi / period * np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    uv = (points @ axes + rng.uniform(0, 2 * np.pi, 2)).astype(np.float32)
    return _PATTERNS[pattern](uv[..., 0], uv[..., 1]).clip(0, 1)


def _colours(hsv: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Hue in degrees, saturation and value to BGR: (N, 3) float32 in 0..1."""
    h, s, v = np.array(hsv, np.float32).T
    return np.asarray(cv2.cvtColor(np.stack((h % 360, s.clip(0, 1), v.clip(0, 1)), axis=1)[None], cv2.COLOR_HSV2BGR)[0])


def _draw(rng: np.random.Generator, image: np.ndarray, kind: _Kind, length: float) -> np.ndarray:
    """Draw into `image` (H, W, 3), a unit being `length` pixels, at a random place and pose; returns the pixels (H, W)."""
    h, w = image.shape[:2]
    turn, stretch = np.radians(rng.uniform(-25, 25)), np.exp(rng.uniform(-0.15, 0.15))
    rotation = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    pose = rotation @ np.diag((length * stretch * rng.choice((-1, 1)), length / stretch))
    centre = rng.uniform(0.1, 0.9, 2) * (w, h)
    tones = np.zeros((h, w), np.uint8)
    for code, contours in kind.parts:
        corners = [np.rint(16 * (contour @ pose.T + centre)).astype(np.int32) for contour in contours]
        cv2.fillPoly(tones, corners, code, cv2.LINE_8, shift=4)
    rows, columns = np.nonzero(tones)
    unit = (np.stack((columns, rows), axis=1) - centre) @ np.linalg.inv(pose).T
    pattern, period, angle = kind.texture
    share = _texture(rng, pattern, period * np.exp(rng.uniform(-0.2, 0.2)), angle + rng.uniform(-10, 10), unit)[:, None]

    hue, spread, *shade = kind.body
    body = hue + rng.uniform(-spread, spread), *np.add(shade, rng.uniform(-0.12, 0.12, 2))
    second = kind.second[0] + rng.uniform(-10, 10), *kind.second[1:]
    dark, light = (230.0, 0.2, rng.uniform(0.1, 0.3)), (50.0, 0.08, rng.uniform(0.75, 0.95))
    colours, tone = _colours([(0, 0, 0), body, second, dark, light]), tones[rows, columns]
    # the other tones carry a trace of the texture, too: no part of an object is flat
    share *= np.where(tone == _TONES["b"], 1, 0.15).astype(np.float32)[:, None]
    colour = colours[tone] * (1 - share) + colours[np.where(tone == _TONES["a"], 1, 2)] * share
    image[rows, columns] = colour * (1 - 0.25 * (unit @ rotation.T)[:, 1:])  # lit from above, however the object leans
    return tones > 0


def _background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Two textured fields (say, sky and ground), each a smooth mix of like colours; (H, W, 3) float32 BGR in 0..1."""
    points = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1)
    image = np.empty((h, w, 3), np.float32)
    horizon = h * (rng.uniform(0.2, 0.8) + rng.uniform(-0.3, 0.3) * (np.arange(w) / w - 0.5))
    for field in (points[..., 1] >= 0, points[..., 1] > horizon):
        hues = rng.uniform(20, 260) + rng.uniform(-25, 25, 12)
        shades = rng.uniform((0.05, 0.35), (0.45, 0.85)) + rng.uniform(-0.12, 0.12, (12, 2))
        coarse = _colours([(hue, *shade) for hue, shade in zip(hues, shades, strict=True)]).reshape(3, 4, 3)
        smooth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        texture = str(rng.choice(list(_PATTERNS))), rng.uniform(4, 24), rng.uniform(0, 180)
        share = _texture(rng, *texture, points)[..., None]
        image[field] = (smooth * (1 + rng.uniform(-0.3, 0.3) * (share - 0.5)))[field]
    return image


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light (gain, white balance, a gradient), gamma, blur and noise; float 0..1 in, uint8 out."""
    h, w = image.shape[:2]
    down, across = rng.uniform(-0.25, 0.25, 2)
    gradient = 1 + down * np.linspace(-1, 1, h)[:, None, None] + across * np.linspace(-1, 1, w)[:, None]
    image = (image * (gradient * rng.uniform(0.75, 1.2) * rng.uniform(0.9, 1.1, 3))).clip(0, 1).astype(np.float32)
    image = cv2.GaussianBlur(image ** rng.uniform(0.75, 1.3), (0, 0), rng.uniform(0.4, 0.9))
    image = image + rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.rint(255 * image.clip(0, 1)), np.uint8)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 BGR image and (H, W) uint8 label map with values 0..20 and 255."""
    h, w = size
    image = _background(rng, h, w)
    instance, label = np.zeros((2, h, w), np.uint8)
    base = 0.36 * np.sqrt(h * w)
    for _ in range(rng.integers(2, 7)):
        _draw(rng, image, _clutter(rng), base * rng.uniform(0.2, 0.8))
    # small objects come last: a large one in front would leave nothing of them
    lengths = np.sort(base * np.exp(rng.uniform(np.log(0.5), np.log(2), rng.integers(1, 5))))[::-1]
    for number, length in enumerate(lengths, start=1):
        index = int(rng.integers(1, len(VOC_CLASSES)))
        pixels = _draw(rng, image, _kinds()[VOC_CLASSES[index]], length)
        instance[pixels], label[pixels] = number, index
    window = np.ones((3, 3), np.uint8)
    label[cv2.dilate(instance, window) != cv2.erode(instance, window)] = VOID
    return _photograph(rng, image), label


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether the asked-for set stands in `root`; FileExistsError where anything else does."""
    for path in (root / "scenes.json", root / "scenes.partial.json"):
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))["arguments"]
            except (ValueError, KeyError, TypeError):
                found = "nothing readable"
            if found == arguments:
                return path.name == "scenes.json"
            raise FileExistsError(
                f"{root} holds generated scenes drawn with other arguments: {path.name} says {found}, asked for is "
                f"{arguments}. Ask for the same, choose another folder, or delete this one if nobody needs it."
            )
    for name in ("JPEGImages", "SegmentationClass", "ImageSets"):
        if os.path.lexists(root / name):
            raise FileExistsError(
                f"{root} holds {name} but no scenes.json, so it is a VOC data set that was not generated here; nothing "
                f"was changed. Train on it as it is, or choose another folder for generated scenes."
            )
    return False


def write_scenes(root: Path | str, train: int = 240, val: int = 60, size: tuple[int, int] = (128, 160), seed: int = 0) -> Path:
    """Write `train` + `val` generated scenes of `size` (H, W) pixels in VOC's layout, unless they are there already.

    `root`/JPEGImages/<id>.jpg (quality 95), `root`/SegmentationClass/<id>.png (indexed, VOC's palette, 255 = void),
    `root`/ImageSets/Segmentation/{train,val}.txt; last `root`/scenes.json with the arguments and the SHA-256 of all these
    files' bytes, one after the other in the order of their paths. A call that was interrupted leaves scenes.partial.json
    instead, and the same call finishes the set. The same arguments give the same bytes with the same numpy, OpenCV and Pillow
    on the same kind of processor; a scene depends on `size`, `seed`, its split and its number only.

    Returns `root`. Raises FileExistsError where `root` holds a VOC data set that was not generated, or scenes with other
    arguments, and leaves them as they are; ValueError for a negative number or a side below 32.
    """
    root, (h, w) = Path(root), size
    if min(train, val, seed) < 0 or min(h, w) < 32:
        raise ValueError(f"train, val and seed must be 0 or more, sides 32 or more: {train=}, {val=}, {size=}, {seed=}")
    arguments = {"format": FORMAT, "train": train, "val": val, "size": [h, w], "seed": seed}
    if _is_complete(root, arguments):
        return root
    write_atomically(json.dumps({"arguments": arguments}).encode(), root / "scenes.partial.json")
    written = []
    for split, (name, count) in enumerate((("train", train), ("val", val))):
        ids = [f"{name}_{index:06d}" for index in range(count)]
        for index, stem in enumerate(ids):
            image, label = draw_scene(np.random.default_rng(np.random.SeedSequence([seed, split, index])), size)
            jpg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            written += [root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png"]
            write_atomically(jpg, written[-2])
            write_mask(written[-1], label)
        written.append(root / "ImageSets" / "Segmentation" / f"{name}.txt")
        write_atomically("".join(f"{stem}\n" for stem in ids).encode(), written[-1])
    digest = hashlib.sha256()
    for path in sorted(written):
        digest.update(path.read_bytes())
    facts = {"arguments": arguments, "sha256": digest.hexdigest()}
    write_atomically(json.dumps(facts, indent=1).encode(), root / "scenes.json")
    (root / "scenes.partial.json").unlink(missing_ok=True)
    return root
