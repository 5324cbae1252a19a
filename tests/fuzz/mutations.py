"""Mutated files: each function takes a random generator and gives the bytes of a file and what is right to do with it."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

__all__ = ["Mutant", "archive", "checkpoint", "config", "image", "mask", "mat"]


@dataclass
class Mutant:
    """A mutated file.

    Attributes:
        kind: what was done to it, for the table.
        data: its content.
        right: 'same' must be accepted with the values of the original; 'refuse' must be refused; 'either' may be refused, and
            where it is accepted it must have the values of the original; 'any' may also have other values.
    """

    kind: str
    data: bytes
    right: str


def flip_bits(rng: random.Random, data: bytes, count: int = 1) -> bytes:
    """Change single bits."""
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Keep the beginning only."""
    return data[: rng.randrange(len(data) - 1)]


def overwrite(rng: random.Random, data: bytes) -> bytes:
    """Replace a range by zeros or random bytes."""
    start = rng.randrange(len(data))
    size = min(len(data) - start, rng.choice([1, 8, 64, 512]))
    return data[:start] + (bytes(size) if rng.random() < 0.5 else rng.randbytes(size)) + data[start + size :]


def shift(rng: random.Random, data: bytes) -> bytes:
    """Insert or remove a few bytes."""
    start = rng.randrange(len(data))
    if rng.random() < 0.5:
        return data[:start] + rng.randbytes(rng.choice([1, 4, 100])) + data[start:]
    return data[:start] + data[start + rng.choice([1, 4, 100]) :]


def damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One of the above."""
    kind, function = rng.choice(
        [("bit flipped", flip_bits), ("cut short", cut), ("overwritten", overwrite), ("shifted", shift)]
    )
    return kind, function(rng, data)


def _saved(pixels: np.ndarray | Image.Image, suffix: str, **options: object) -> bytes:
    picture, buffer = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), io.BytesIO()
    picture.save(buffer, format=suffix, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(height: int, width: int) -> bytes:
    """A PNG whose header announces a large picture, with little data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")


def mask(rng: random.Random, labels: np.ndarray, stored: bytes) -> Mutant:
    """A label map.

    Args:
        rng: the generator.
        labels: (H, W) uint8.
        stored: its file.
    """
    wide, (h, w) = labels.astype(np.uint16), labels.shape
    large = wide.copy()
    large[rng.randrange(h), rng.randrange(w)] = rng.choice([256, 257, 258, 4096, 65535])
    grey = np.repeat(labels[..., None], rng.choice([3, 4]), axis=2)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, labels.shape, np.uint8)
    side = rng.choice([(h + 1, w), (h, w - 1), (w, h), (h // 2, w // 2), (1, 1)])
    palette = Image.fromarray(labels)
    palette.putpalette(rng.randbytes(768))
    makers: list[tuple[str, str, Callable[[], bytes]]] = [
        ("16 bits, values that fit", "same", lambda: _saved(wide, "png")),
        ("16 bits, a value above 255", "refuse", lambda: _saved(large, "png")),
        ("32 bits, a value above 255", "refuse", lambda: _saved(large.astype(np.int32), "tiff")),
        ("grey, other compression", "same", lambda: _saved(labels, "png", compress_level=rng.randrange(10))),
        ("another palette", "same", lambda: _saved(palette, "png")),
        ("RGB or RGBA", "refuse", lambda: _saved(grey, "png")),
        ("JPEG", "refuse", lambda: _saved(labels, "jpeg", quality=rng.randrange(1, 96))),
        ("another size", "refuse", lambda: _saved(np.resize(labels, side), "png")),
        ("labels of no class", "refuse", lambda: _saved(noise, "png")),
        ("empty", "refuse", lambda: b""),
        ("text", "refuse", lambda: b"no picture at all\n" * rng.randrange(1, 9)),
        ("announces 2^31 pixels", "refuse", lambda: _bomb(2**16, 2**15)),
    ]
    if rng.random() < 0.4:
        kind, data = damage(rng, stored)
        return Mutant(kind, data, "either")
    kind, right, make = rng.choice(makers)
    return Mutant(kind, make(), right)


def image(rng: random.Random, pixels: np.ndarray, stored: bytes) -> Mutant:
    """A picture (H, W, 3) uint8 of an image file."""
    options = [
        ("grey", "any", lambda: _saved(pixels[..., 0], "png")),
        ("alpha", "any", lambda: _saved(np.dstack([pixels, pixels[..., 0]]), "png")),
        ("16 bits", "any", lambda: _saved(pixels[..., 0].astype(np.uint16) * 257, "png")),
        ("CMYK", "any", lambda: _saved(Image.fromarray(pixels).convert("CMYK"), "jpeg")),
        ("progressive", "any", lambda: _saved(pixels, "jpeg", progressive=True)),
        ("rotated by EXIF", "any", lambda: _rotated(rng, pixels)),
        ("one pixel", "any", lambda: _saved(pixels[:1, :1], "png")),
        ("one row", "any", lambda: _saved(pixels[:1], "png")),
        ("empty", "refuse", lambda: b""),
        ("text", "refuse", lambda: b"no picture at all\n" * rng.randrange(1, 9)),
        ("announces 2^31 pixels", "refuse", lambda: _bomb(2**16, 2**15)),
        ("a file of numpy", "refuse", lambda: _npy(pixels)),
    ]
    if rng.random() < 0.5:
        kind, data = damage(rng, stored)
        # a JPEG has no checksum: another pixel cannot be told from a right one, but a missing part can
        return Mutant(kind, data, "any")
    kind, right, make = rng.choice(options)
    return Mutant(kind, make(), right)


def _rotated(rng: random.Random, pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = rng.randrange(0, 12)
    return _saved(picture, "jpeg", exif=exif)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class RunsCode:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        """Touch the file."""
        return Path.touch, (self.marker,)


def checkpoint(rng: random.Random, stored: bytes, marker: Path) -> Mutant:
    """A checkpoint; what would run code touches ``marker``."""
    if rng.random() < 0.5:
        kind, data = damage(rng, stored)
        return Mutant(kind, data, "either")
    content = torch.load(io.BytesIO(stored), weights_only=False)
    state = content["state_dict"]
    name = rng.choice([name for name, value in state.items() if value.is_floating_point()])
    kind = rng.choice(
        [
            "code in meta",
            "code in weights",
            "code alone",
            "a list",
            "no state_dict",
            "a tensor less",
            "another shape",
            "NaN",
            "a string as tensor",
            "legacy file with code",
            "empty",
            "text",
        ]
    )
    right = "refuse"
    if kind == "code in meta":
        content["meta"]["more"] = RunsCode(marker)
    elif kind == "code in weights":
        state[name] = RunsCode(marker)
    elif kind in ("code alone", "legacy file with code"):
        content = RunsCode(marker)
    elif kind == "a list":
        content = list(content.values())
    elif kind == "no state_dict":
        del content["state_dict"]
    elif kind == "a tensor less":
        del state[name]
    elif kind == "another shape":
        state[name] = torch.zeros(*state[name].shape, 2)
    elif kind == "NaN":
        state[name] = torch.full_like(state[name], float("nan"))
        # a part that a prediction does not need may be anything
        right = "any"
    elif kind == "a string as tensor":
        state[name] = "weights"
    elif kind == "empty":
        return Mutant(kind, b"", right)
    elif kind == "text":
        return Mutant(kind, b"iter_7.pth of another folder\n", right)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=kind != "legacy file with code")
    return Mutant(kind, buffer.getvalue(), right)


def config(rng: random.Random, settings: dict) -> Mutant:
    """A config in Python, of which one or two values or keys are changed."""
    settings = pickle.loads(pickle.dumps(settings))
    kinds = []
    for _ in range(rng.choice([1, 1, 2])):
        inner, key = rng.choice(list(_keys(settings)))
        kind = rng.choice(["key removed", "key misspelt", "value replaced", "type replaced", "key added"])
        if kind == "key removed":
            del inner[key]
        elif kind == "key misspelt" and isinstance(key, str):
            position = rng.randrange(len(key))
            inner[key[:position] + key[position + 1 :] or "x"] = inner.pop(key)
        elif kind == "type replaced" and isinstance(inner, dict) and "type" in inner:
            inner["type"] = rng.choice([*NO_TYPES, None, "PixelNet", "SGD", "PolyLR"])
        elif kind == "key added" and isinstance(inner, dict):
            inner[rng.choice(["alfa", "use_sigmoid", "lr_mult", "interval"])] = rng.choice([0, None, "x"])
        else:
            kind = "value replaced"
            inner[key] = rng.choice([None, -1, 0, 2.5, "x", "", [], {}, True, float("nan"), ["x"], {"type": "x"}])
        kinds.append(kind)
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items() if str(name).isidentifier())
    # most mutants may be what somebody wants; these cannot
    built = [settings.get(name) for name in ("model", "optim_wrapper", "train_dataloader")]
    wrong = any(key == "type" and inner[key] in NO_TYPES for inner, key in _keys(built) if isinstance(inner, dict))
    wrong |= any(settings.get(name) in (5, "x", ["x"], {"type": "x"}) for name in ("model", "optim_wrapper", "train_cfg"))
    return Mutant(kinds[0], ("nan = float('nan')\n" + text).encode(), "refuse" if wrong else "any")


NO_TYPES = ("Nothing", "ExpGBLos", 5, "")
"""What no registry has."""


def _keys(value: object) -> list[tuple[object, object]]:
    """All places in nested dicts and lists."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, inner in items for place in [(value, key), *_keys(inner)]]


def archive(rng: random.Random, files: dict[str, bytes]) -> Mutant:
    """A tar archive of ``files``, plain or compressed."""
    mode = rng.choice(["w", "w:gz", "w:bz2", "w:xz"])
    kind = rng.choice(
        [
            "whole",
            "damaged",
            "damaged",
            "a path upwards",
            "an absolute path",
            "a link out of the folder",
            "a device",
            "a file, then a folder of its name",
            "a folder, then a file of its name",
            "a long name",
            "announces 2^50 bytes",
            "a bomb",
            "a zip",
            "gzip of nothing",
        ]
    )
    buffer = io.BytesIO()
    if kind == "a zip":
        with zipfile.ZipFile(buffer, "w") as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
        return Mutant(kind, buffer.getvalue(), "refuse")
    if kind == "gzip of nothing":
        return Mutant(kind, gzip.compress(b""), "refuse")
    extra = tarfile.TarInfo(
        {
            "a path upwards": "../outside",
            "an absolute path": "/tmp/outside",
            "a long name": "x" * rng.choice([256, 300, 5000]),
            "a file, then a folder of its name": f"{next(iter(files))}/inner",
            "a folder, then a file of its name": next(iter(files)).split("/")[0],
        }.get(kind, "extra")
    )
    content = b"inner"
    if kind == "a link out of the folder":
        extra.type, extra.linkname, content = tarfile.SYMTYPE, "../../outside", b""
    elif kind == "a device":
        extra.type, content = tarfile.CHRTYPE, b""
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if kind == "announces 2^50 bytes":
            extra.size = 2**50
            header = extra.tobuf(tarfile.GNU_FORMAT)
            tar.fileobj.write(header)
            tar.offset += len(header)
        elif kind == "a bomb":
            extra.size = 2**26
            tar.addfile(extra, io.BytesIO(bytes(2**26)))
        elif kind not in ("whole", "damaged"):
            extra.size = len(content)
            tar.addfile(extra, io.BytesIO(content))
    data = buffer.getvalue()
    if kind == "damaged":
        kind, data = damage(rng, data)
        # a plain tar has a checksum of headers alone, so a changed file in it cannot be told
        return Mutant(f"{kind}, {mode}", data, "any" if mode == "w" else "either")
    return Mutant(kind, data, "same" if kind == "whole" else "any" if kind == "a bomb" else "refuse")


def mat(rng: random.Random, labels: np.ndarray) -> Mutant:
    """SBD's file of a label map (H, W)."""
    kind = rng.choice(["whole", "damaged", "damaged", "damaged", "a bomb", "labels of no class", "floats", "another variable"])
    values: object = labels
    if kind == "labels of no class":
        values = labels + 100
    elif kind == "floats":
        values = labels.astype(np.float64) + 0.5
    elif kind == "a bomb":
        return Mutant(kind, _mat_bomb(), "refuse")
    buffer = io.BytesIO()
    name = "GTinst" if kind == "another variable" else "GTcls"
    compressed = rng.random() < 0.7
    scipy.io.savemat(buffer, {name: {"Segmentation": values, "Boundaries": np.zeros(3)}}, do_compression=compressed)
    data = buffer.getvalue()
    if kind == "damaged":
        kind, data = damage(rng, data)
        # without compression there is no checksum
        return Mutant(kind, data, "either" if compressed else "any")
    return Mutant(kind, data, "same" if kind == "whole" else "refuse")


@cache
def _mat_bomb() -> bytes:
    """A MATLAB file of 1 MB whose only variable is 2 GB of zeros."""
    compressor = zlib.compressobj(9)
    zeros = bytes(2**24)
    body = compressor.compress(struct.pack("<II", 14, 2**31 - 1))
    body += b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(body)) + body
