"""SBD's labels: torchvision's own reader against the PNGs, and files that are not what they should be."""

from __future__ import annotations

import errno
import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_layouts import in_child, sbd_struct, tree_of
from scipy.io import savemat
from torchvision.datasets import SBDataset

from gbseg.data.prepare.sbd import convert_sbd, find_sbd, is_complete_png, read_segmentation
from gbseg.palettes import VOC_PALETTE

IDS = [f"2008_{n:06d}" for n in range(12)]


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """An SBD of 12 images in torchvision's layout."""
    root = tmp_path / "sbd"
    for folder in ("cls", "img"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(IDS):
        labels = rng.integers(0, 21, (30 + number, 41), np.uint8)
        savemat(root / "cls" / f"{name}.mat", sbd_struct(labels), do_compression=bool(number % 2))
        Image.new("RGB", labels.shape[::-1]).save(root / "img" / f"{name}.jpg")
    (root / "train.txt").write_text("".join(f"{name}\n" for name in IDS[:8]))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in IDS[8:]))
    return root


@pytest.mark.parametrize("processes", [1, 2])
def test_against_torchvision(sbd: Path, tmp_path: Path, processes: int) -> None:
    """The PNGs hold what torchvision reads from the same files, in VOC's colours."""
    assert convert_sbd(sbd, IDS, tmp_path / "out", processes) == (12, [])
    seen = 0
    for which, names in (("train", IDS[:8]), ("val", IDS[8:])):
        for name, (_, labels) in zip(names, SBDataset(str(sbd), which, mode="segmentation"), strict=True):
            with Image.open(tmp_path / "out" / f"{name}.png") as image:
                assert image.mode == "P" and image.getpalette() == [c for colour in VOC_PALETTE for c in colour]
                np.testing.assert_array_equal(np.array(image), np.array(labels))
            seen += 1
    assert seen == len(list((tmp_path / "out").iterdir())) == 12


def test_a_second_time(sbd: Path, tmp_path: Path) -> None:
    """Nothing is written; what is gone, empty or cut short is written again with the same bytes."""
    out = tmp_path / "out"
    convert_sbd(sbd, IDS, out, 1)
    before, times = tree_of(out), {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())}
    assert convert_sbd(sbd, IDS, out, 1) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())} == times
    (out / f"{IDS[0]}.png").unlink()
    (out / f"{IDS[1]}.png").write_bytes(b"")
    (out / f"{IDS[2]}.png").write_bytes(before[f"{IDS[2]}.png"][:-3])
    (out / f"{IDS[3]}.png").write_bytes(bytes(len(before[f"{IDS[3]}.png"])))
    assert [is_complete_png(out / f"{name}.png") for name in IDS] == [False] * 4 + [True] * 8
    assert convert_sbd(sbd, IDS, out, 2) == (4, []) and tree_of(out) == before


@pytest.mark.parametrize("layout", ["benchmark_RELEASE/dataset", "dataset", "", "sbd", "sbd/benchmark_RELEASE/dataset"])
def test_where_it_lies(sbd: Path, tmp_path: Path, layout: str) -> None:
    """Berkeley's layout, torchvision's, and the folder itself; without its labels or lists it is not there."""
    root = tmp_path / "root"
    assert find_sbd(root) is None
    (root / layout).parent.mkdir(parents=True, exist_ok=True)
    sbd.rename(root / layout)
    assert find_sbd(root) == root / layout
    (root / layout / "val.txt").unlink()
    assert find_sbd(root) is None


def _mat(**content: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    return buffer.getvalue()


def _struct(values: object) -> bytes:
    return _mat(GTcls={"Segmentation": values})


LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or no MATLAB file"),
        (b"<html>not found</html>" * 20, "is damaged or no MATLAB file"),
        (_mat(**sbd_struct(LABELS))[:-150], "is damaged or no MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "is damaged or no MATLAB file"),
        (_mat(GTinst={"Segmentation": LABELS}), r"has no GTcls\.Segmentation"),
        (_mat(GTcls={"Boundaries": LABELS}), r"has no GTcls\.Segmentation"),
        (_mat(GTcls=LABELS), r"has no GTcls\.Segmentation"),
        (_struct(LABELS.astype(float)), r"GTcls\.Segmentation is \(3, 4\) float64 instead of \(H, W\) integers"),
        (_struct(LABELS[None]), r"is \(1, 3, 4\) uint8 instead"),
        (_struct(LABELS[:0]), r"is \(0, 4\) uint8 instead"),
        (_struct("text"), r"is \(1,\) <U4 instead"),
        (_struct(LABELS + 10), r"has the values \[21\]; classes are 0\.\.20"),
        (_struct(LABELS.astype(np.int16) - 3), r"has the values \[-3, -2, -1\]"),
        (_struct(np.where(LABELS > 5, 255, LABELS)), r"has the values \[255\]"),
    ],
)
def test_what_is_no_label(tmp_path: Path, content: bytes, words: str) -> None:
    """Each is refused with the file's name; nothing is cast."""
    path = tmp_path / "2008_000001.mat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_segmentation(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def _bomb(content: bytes, repeats: int, head: bytes = b"") -> bytes:
    """A MATLAB file whose one variable begins with ``head`` and goes on with ``content``, compressed."""
    compressor = zlib.compressobj(1)
    data = compressor.compress(head) + b"".join(compressor.compress(content) for _ in range(repeats)) + compressor.flush()
    return _mat()[:128] + struct.pack("<II", 15, len(data)) + data


@pytest.mark.parametrize("size", [None, (500, 375), (15_000, 15_000)], ids=["no image", "image", "vast image"])
def test_a_small_file_of_something_large(tmp_path: Path, size: tuple[int, int] | None) -> None:
    """No more is decompressed than the label map of the image can need: 400 MB of zeros take 2 MB in a file."""
    path = tmp_path / "cls/2008_000001.mat"
    path.parent.mkdir()
    path.write_bytes(_bomb(bytes(2**20), 400, struct.pack("<II", 14, 2**31 - 8)))
    assert path.stat().st_size < 2**21 + 2**16
    if size:
        (tmp_path / "img").mkdir()
        Image.new("1", size).save(tmp_path / "img/2008_000001.jpg", format="PNG")
    most = 2**20 + 64 * (187_500 if size == (500, 375) else 2**22)

    def peak() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match=rf"{path} is damaged .*: its variables have more than {most:,} bytes, the most"):
            read_segmentation(path)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert grown < 3 * most + 2**26, f"{grown:,} bytes"

    assert in_child(peak) == ""


def test_a_variable_compressed_twice(tmp_path: Path) -> None:
    """SciPy would decompress the inner one, without a limit."""
    path = tmp_path / "a.mat"
    inner = _bomb(bytes(2**20), 16)[128:]
    path.write_bytes(_bomb(inner, 1))
    with pytest.raises(ValueError, match=rf"{path} is damaged .*: what is compressed at byte 128 is no variable"):
        read_segmentation(path)


def test_flipped_bytes(tmp_path: Path) -> None:
    """A compressed file, which is what MATLAB writes unasked, is refused by name wherever it is damaged, or reads the same.

    (Some bits of a deflate stream say nothing.)
    """
    data, path = _mat(**sbd_struct(LABELS)), tmp_path / "a.mat"
    rng, same = np.random.default_rng(0), 0
    for position in [126, 127, *range(128, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_segmentation(path), LABELS)
            same += 1
        except ValueError as error:
            assert str(path) in str(error)
    assert same < 0.02 * len(data)


def test_bad_files_among_good(sbd: Path, tmp_path: Path) -> None:
    """They are named, the others are done, and the next start does the rest."""
    good = (sbd / "cls" / f"{IDS[5]}.mat").read_bytes()
    (sbd / "cls" / f"{IDS[5]}.mat").write_bytes(good[:300])
    (sbd / "cls" / f"{IDS[7]}.mat").unlink()
    done, failed = convert_sbd(sbd, IDS, tmp_path / "out", 2)
    assert done == 10 and [name for name, _ in failed] == [IDS[5], IDS[7]]
    assert f"{IDS[5]}.mat is damaged" in str(failed[0][1]) and f"{IDS[7]}.mat is missing" in str(failed[1][1])
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [n for n in IDS if n not in (IDS[5], IDS[7])]
    (sbd / "cls" / f"{IDS[5]}.mat").write_bytes(good)
    done, failed = convert_sbd(sbd, IDS, tmp_path / "out", 2)
    assert done == 1 and [name for name, _ in failed] == [IDS[7]]


@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk(sbd: Path, tmp_path: Path, processes: int) -> None:
    """A file that cannot be written ends it, is named, and is not there."""
    savemat(sbd / "cls" / "large.mat", sbd_struct(np.random.default_rng(1).integers(0, 21, (90, 90), np.uint8)))
    error = in_child(lambda: convert_sbd(sbd, ["large", IDS[0]], tmp_path / "out", processes), limit=4000)
    start = f"FileWriteError: [Errno {errno.EFBIG}] {tmp_path}/out/large.png could not be written: File too large"
    assert error and error.startswith(start)
    assert [path.name for path in (tmp_path / "out").iterdir() if not is_complete_png(path)] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {f"{IDS[0]}.png"}
