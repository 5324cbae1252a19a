"""Generated scenes in PASCAL VOC's layout: the data set of the demo, for training without a download.

A scene is a cluttered background and one to four objects of the 20 VOC classes. A class has a silhouette, a texture and a
range of hues (``scene_objects.txt`` beside this module). Classes and clutter share hues and textures, so that no single cue
gives the label.

H, W: height and width of a scene in pixels. N: number of points. Unit coordinates of a silhouette: x to the right, y downwards.
"""

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

from gbseg.data.layout import IMAGES, LISTS, MASKS
from gbseg.data.lists import list_bytes
from gbseg.data.masks import write_mask
from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES

VOID = 255
FORMAT = 2  # raise it with every change that changes a byte of what write_scenes writes
_OBJECTS = Path(__file__).with_name("scene_objects.txt")

# the share of the second colour (clipped to 0..1) at u, v: coordinates across and along the texture's angle, period 2 pi
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
    """How an object looks.

    Attributes:
        body: hue of the body in degrees, its range (+-), saturation, value.
        second: hue, saturation and value of the second colour.
        texture: name of the pattern, period in unit lengths, angle in degrees.
        parts: pairs of a tone and its contours, each (N, 2) in unit coordinates.
    """

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
    if shape == "ring":  # the inner contour is a hole: fillPoly fills by the even-odd rule
        return [np.array(n[:2]) + radius * _CIRCLE for radius in (n[2], n[2] - n[3])]
    if shape == "line":
        start, end = np.array(n[:2]), np.array(n[2:4])
        side = (end - start)[::-1] * (-1, 1) * n[4] / 2 / np.hypot(*(end - start))
        return [np.stack((start + side, end + side, end - side, start - side))]
    return [np.array(n).reshape(-1, 2)]


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """The classes' objects, each centred on its bounding box and scaled to one unit of area, so that no class is rare."""
    kinds = {}
    lines = [line for line in _OBJECTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for row in re.split(r"\n(?! )", "\n".join(lines)):
        (name, *body), second, (pattern, period, angle), _ = (field.split() for field in row.split("|"))
        parts = (part.split() for part in re.split("[;\n]", row.rpartition("|")[2]))
        drawn = [(_TONES[tone], _contours(shape, *map(float, numbers))) for tone, shape, *numbers in parts]
        corners = np.concatenate([contour for _, contours in drawn for contour in contours])
        centre, mask = (corners.min(axis=0) + corners.max(axis=0)) / 2, np.zeros((300, 300), np.uint8)
        for _, contours in drawn:
            cv2.fillPoly(mask, [np.rint(100 * (contour - centre) + 150).astype(np.int32) for contour in contours], 1)
        unit = float(np.sqrt(mask.sum()) / 100)
        scaled = [(tone, [(contour - centre) / unit for contour in contours]) for tone, contours in drawn]
        texture = pattern, float(period) / unit, float(angle)
        kinds[name] = _Kind(tuple(map(float, body)), tuple(map(float, second)), texture, scaled)
    return kinds


def _clutter(rng: np.random.Generator) -> _Kind:
    """An angular blob of random hue and texture, which belongs to no class."""
    radius = rng.uniform(0.25, 0.9, (int(rng.integers(3, 8)), 1))
    turn = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    blob = radius * np.stack((np.cos(turn), np.sin(turn)), axis=1)
    hues = rng.uniform(0, 360) + rng.uniform(-40, 40, 2)
    body, second = ((hue, *rng.uniform((0.1, 0.3), (0.65, 0.9))) for hue in hues)
    texture = str(rng.choice(list(_PATTERNS))), rng.uniform(0.15, 0.6), rng.uniform(0, 180)
    return _Kind((body[0], 0, *body[1:]), second, texture, [(_TONES["b"], [blob])])


def _texture(rng: np.random.Generator, pattern: str, period: float, angle: float, points: np.ndarray) -> np.ndarray:
    """The second colour's share at points (..., 2), with a random phase; (...) float32."""
    turn = np.radians(angle)
    axes = 2 * np.pi / period * np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    uv = (points @ axes + rng.uniform(0, 2 * np.pi, 2)).astype(np.float32)
    return _PATTERNS[pattern](uv[..., 0], uv[..., 1]).clip(0, 1)


def _colours(hsv: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Convert hue in degrees, saturation and value to BGR, (N, 3) float32 in 0..1."""
    h, s, v = np.array(hsv, np.float32).T
    return np.asarray(cv2.cvtColor(np.stack((h % 360, s.clip(0, 1), v.clip(0, 1)), axis=1)[None], cv2.COLOR_HSV2BGR)[0])


def _draw(rng: np.random.Generator, image: np.ndarray, kind: _Kind, length: float) -> np.ndarray:
    """Draw an object into ``image`` (H, W, 3) at a random position and pose, a unit being ``length`` pixels.

    Returns:
        (H, W) bool, the pixels of the object.
    """
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
    # the other tones have a trace of the texture: no part of an object is flat
    share *= np.where(tone == _TONES["b"], 1, 0.15).astype(np.float32)[:, None]
    colour = colours[tone] * (1 - share) + colours[np.where(tone == _TONES["a"], 1, 2)] * share
    image[rows, columns] = colour * (1 - 0.25 * (unit @ rotation.T)[:, 1:])  # lit from above, however the object leans
    return tones > 0


def _background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Two textured fields (such as sky and ground), each a smooth mix of similar colours; (H, W, 3) float32 BGR in 0..1."""
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
    """Add light (gain, white balance, a gradient), gamma, blur and noise to (H, W, 3) in 0..1; uint8."""
    h, w = image.shape[:2]
    down, across = rng.uniform(-0.25, 0.25, 2)
    gradient = 1 + down * np.linspace(-1, 1, h)[:, None, None] + across * np.linspace(-1, 1, w)[:, None]
    image = (image * (gradient * rng.uniform(0.75, 1.2) * rng.uniform(0.9, 1.1, 3))).clip(0, 1).astype(np.float32)
    image = cv2.GaussianBlur(image ** rng.uniform(0.75, 1.3), (0, 0), rng.uniform(0.4, 0.9))
    image = image + rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.rint(255 * image.clip(0, 1)), np.uint8)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of ``size`` (H, W) pixels: (H, W, 3) uint8 BGR image, (H, W) uint8 label map with values 0..20 and 255."""
    h, w = size
    image = _background(rng, h, w)
    instance, label = np.zeros((2, h, w), np.uint8)
    base = 0.36 * np.sqrt(h * w)
    for _ in range(rng.integers(2, 7)):
        _draw(rng, image, _clutter(rng), base * rng.uniform(0.2, 0.8))
    # small objects come last, so that a large one does not hide them
    lengths = np.sort(base * np.exp(rng.uniform(np.log(0.5), np.log(2), rng.integers(1, 5))))[::-1]
    for instance_id, length in enumerate(lengths, start=1):
        class_index = int(rng.integers(1, len(VOC_CLASSES)))
        pixels = _draw(rng, image, _kinds()[VOC_CLASSES[class_index]], length)
        instance[pixels], label[pixels] = instance_id, class_index
    window = np.ones((3, 3), np.uint8)
    label[cv2.dilate(instance, window) != cv2.erode(instance, window)] = VOID
    return _photograph(rng, image), label


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether ``root`` holds the complete set of these arguments; FileExistsError if it holds anything else."""
    for path in (root / "scenes.json", root / "scenes.partial.json"):
        if path.exists():
            try:
                recorded = json.loads(path.read_text(encoding="utf-8"))["arguments"]
            except (ValueError, KeyError, TypeError):
                recorded = "nothing readable"
            if recorded == arguments:
                return path.name == "scenes.json"
            raise FileExistsError(
                f"{root} holds generated scenes drawn with other arguments: {path.name} says {recorded}, asked for is "
                f"{arguments}. Ask for the same, choose another folder, or delete this one if nobody needs it."
            )
    for name in (IMAGES, MASKS, "ImageSets"):
        if os.path.lexists(root / name):
            raise FileExistsError(
                f"{root} holds {name} but no scenes.json, so it is a VOC data set that was not generated here; nothing "
                f"was changed. Train on it as it is, or choose another folder for generated scenes."
            )
    return False


def write_scenes(root: Path | str, train: int = 240, val: int = 60, size: tuple[int, int] = (128, 160), seed: int = 0) -> Path:
    """Write generated scenes in VOC's layout, unless they exist already.

    Files: ``JPEGImages/<id>.jpg`` (quality 95), ``SegmentationClass/<id>.png`` (indexed, VOC's palette, 255 = void),
    ``ImageSets/Segmentation/{train,val}.txt``, and last ``scenes.json`` with the arguments and the SHA-256 of the bytes of all
    these files in the order of their paths. An interrupted call leaves ``scenes.partial.json`` instead, and the same call
    finishes the set. The same arguments give the same bytes with the same versions of numpy, OpenCV and Pillow on the same
    kind of processor. A scene depends only on ``size``, ``seed``, its split and its number.

    Args:
        root: the folder to write to.
        train: number of training scenes.
        val: number of validation scenes.
        size: height and width in pixels.
        seed: seed of the random numbers.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` holds a VOC data set that was not generated, or scenes of other arguments; nothing is changed.
        ValueError: a negative number, or a side below 32 pixels.
    """
    root, (h, w) = Path(root), size
    if min(train, val, seed) < 0 or min(h, w) < 32:
        raise ValueError(f"train, val and seed must be 0 or more, sides 32 or more: {train=}, {val=}, {size=}, {seed=}")
    arguments = {"format": FORMAT, "train": train, "val": val, "size": [h, w], "seed": seed}
    if _is_complete(root, arguments):
        return root
    write_atomically(json.dumps({"arguments": arguments}).encode(), root / "scenes.partial.json")
    written = []
    for split_index, (split, count) in enumerate((("train", train), ("val", val))):
        ids = [f"{split}_{index:06d}" for index in range(count)]
        for index, stem in enumerate(ids):
            image, label = draw_scene(np.random.default_rng(np.random.SeedSequence([seed, split_index, index])), size)
            jpg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            written += [root / IMAGES / f"{stem}.jpg", root / MASKS / f"{stem}.png"]
            write_atomically(jpg, written[-2])
            write_mask(written[-1], label)
        written.append(root / LISTS / f"{split}.txt")
        write_atomically(list_bytes(ids), written[-1])
    digest = hashlib.sha256()
    for path in sorted(written):
        digest.update(path.read_bytes())
    stamp = {"arguments": arguments, "sha256": digest.hexdigest()}
    write_atomically(json.dumps(stamp, indent=1).encode(), root / "scenes.json")
    (root / "scenes.partial.json").unlink(missing_ok=True)
    return root
