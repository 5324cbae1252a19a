"""MNIST and CIFAR-10 as arrays, against torchvision's readers and a loop over images; and files that are not what they say."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader

pytest.importorskip("mmseg")
from gbseg.data.arrays import BadDataFileError, read_cifar10, read_folder, read_idx, read_mnist, uniform_words
from gbseg.mm.datasets.array_dataset import ArrayImages, as_is
from gbseg.mm.resumable_sampler import ResumableSampler, SampleIndex, SeededDataset

GENERATOR = np.random.default_rng(0)


def _idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's six files with few images, pickled as Python 2 did: the keys are its byte strings."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        content = {
            "data": GENERATOR.integers(0, 256, (12, 3072), np.uint8),
            "labels": GENERATOR.integers(0, 10, 12).tolist(),
        }
        data = pickle.dumps(content, protocol=2)
        for key in (b"data", b"labels"):
            # the opcode of a text of four bytes' length becomes that of a byte string of one byte's length
            data = data.replace(b"X" + struct.pack("<I", len(key)) + key, b"U" + bytes([len(key)]) + key)
        (folder / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files with few images, in torchvision's place."""
    root = tmp_path_factory.mktemp("mnist")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 20), ("t10k", 7)):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(_idx(GENERATOR.integers(0, 256, (count, 28, 28), np.uint8)))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(GENERATOR.integers(0, 10, count).astype(np.uint8)))
    return root


@pytest.mark.parametrize("train", [True, False])
def test_cifar_is_torchvisions(cifar: Path, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arrays as torchvision reads from the same files (their checksums are the published set's, so not checked)."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    expected = torchvision.datasets.CIFAR10(str(cifar), train=train)
    images = read_cifar10(cifar, train)
    assert (images.pixels == expected.data.transpose(0, 3, 1, 2)).all() and images.labels.tolist() == expected.targets
    assert (read_cifar10(cifar / "cifar-10-batches-py", train).pixels == images.pixels).all()


def test_keys_of_later_writers(tmp_path: Path) -> None:
    """Text and Python 3's bytes as keys are read alike."""
    data, labels = GENERATOR.integers(0, 256, (3, 3072), np.uint8), [1, 2, 3]
    for content in ({b"data": data, b"labels": labels}, {"data": data, "labels": labels}):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
        assert (read_cifar10(tmp_path, False).pixels.reshape(3, -1) == data).all()


@pytest.mark.parametrize("train", [True, False])
def test_mnist_is_torchvisions(mnist: Path, train: bool, tmp_path: Path) -> None:
    """The same arrays as torchvision reads, packed or not."""
    expected = torchvision.datasets.MNIST(str(mnist), train=train)
    images = read_mnist(mnist, train)
    assert (images.pixels[:, 0] == expected.data.numpy()).all() and (images.labels == expected.targets.numpy()).all()
    for path in (mnist / "MNIST/raw").iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert (read_mnist(tmp_path, train).pixels == images.pixels).all()


FALSE_RECORDS = (
    b"\x80\x02}(X\x06\x00\x00\x00labels]K\x00aX\x04\x00\x00\x00data"
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00b\x87R(K\x01K\x01\x85"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00V8K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00a\x85}X\x01\x00\x00\x00a"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RK\x00\x86sK\x08K\x01K\x00tb\x89"
    b"c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86Rtbu."
)


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple:
        return print, ("this must not be printed",)


def test_damaged_files(cifar: Path, mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of damage is one sentence that names the file, and no code of a pickle runs."""
    with pytest.raises(BadDataFileError, match=r"there is no .*/cifar-10-batches-py/data_batch_1"):
        read_cifar10(tmp_path, True)
    with pytest.raises(BadDataFileError, match=r"there is no [^ ]*\d/cifar-10-batches-py/data_batch_1"):
        read_cifar10(tmp_path / "cifar-10-batches-py", True)
    whole = (cifar / "cifar-10-batches-py/test_batch").read_bytes()
    wrong = {
        "cut": whole[: len(whole) // 2],
        "evil": pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2),
        "list": pickle.dumps([1, 2]),
        "shape": pickle.dumps({b"data": np.zeros((2, 10), np.uint8), b"labels": [0, 1]}, protocol=2),
        "count": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, protocol=2),
        # bytes that a dtype declares to be numbers, and its own fields pointers to objects
        "pointers": FALSE_RECORDS,
        "range": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, protocol=2),
    }
    words = {
        "pointers": "numpy.dtype.*, which no CIFAR file needs",
        "evil": "print, which no CIFAR file needs",
        "shape": "not .N, 3072. uint8",
        "count": "2 images and labels",
    }
    for name, data in wrong.items():
        (tmp_path / "test_batch").write_bytes(data)
        with pytest.raises(BadDataFileError, match=words.get(name, r"test_batch")):
            read_cifar10(tmp_path, False)
    assert "must not" not in capsys.readouterr().out

    with pytest.raises(BadDataFileError, match=r"no .*train-images-idx3-ubyte"):
        read_mnist(tmp_path, True)
    good = (mnist / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    (tmp_path / "cut").write_bytes(good[:-1])
    (tmp_path / "type").write_bytes(b"\0\0\x0d" + good[3:])
    (tmp_path / "bad.gz").write_bytes(gzip.compress(good)[:-9])
    for name, message in {"cut": "header .* asks for", "type": "no IDX file", "bad": "cannot be read"}.items():
        with pytest.raises(BadDataFileError, match=message):
            read_idx(tmp_path / name)


def test_folder(tmp_path: Path) -> None:
    """Classes sorted by name, files by name; another size, no image or an empty class is refused by name."""
    pixels = GENERATOR.integers(0, 256, (4, 6, 5, 3), np.uint8)
    for number, name in enumerate(("b/1.png", "a/2.png", "a/1.png", "b/0.png")):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    images, classes = read_folder(tmp_path / "train")
    assert classes == ("a", "b") and images.labels.tolist() == [0, 0, 1, 1]
    assert (images.pixels.transpose(0, 2, 3, 1) == pixels[[2, 1, 3, 0]]).all()
    Image.fromarray(pixels[0][:4]).save(tmp_path / "train/b/9.png")
    with pytest.raises(BadDataFileError, match=r"9\.png is \(4, 5\) pixels"):
        read_folder(tmp_path / "train")
    (tmp_path / "train/b/9.png").write_text("no image")
    with pytest.raises(BadDataFileError, match=r"9\.png cannot be decoded"):
        read_folder(tmp_path / "train")
    (tmp_path / "train/b/9.png").unlink()
    (tmp_path / "train/c").mkdir()
    with pytest.raises(BadDataFileError, match=r"train: 1 of the 3 classes have no images \(c\)\. A set in folders is"):
        read_folder(tmp_path / "train")
    with pytest.raises(BadDataFileError, match=r"there is no .*data/README\.md says"):
        read_folder(tmp_path / "val")


def test_a_folder_of_large_images(tmp_path: Path) -> None:
    """No key changes the limit here."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.pgm").write_bytes(b"P5 40000 30000 255\n")
    match = r"a/1\.pgm cannot be decoded: it has 40000 x 30000 pixels, .* at most 1,073,741,824: make smaller copies$"
    with pytest.raises(BadDataFileError, match=match):
        read_folder(tmp_path)


def test_links_and_hidden_names(tmp_path: Path) -> None:
    """A class may be a link; names with a dot are neither classes nor images; dead links are named, not left out."""
    for name in ("train/a/1.png", "elsewhere/2.png", "train/.ipynb_checkpoints/1-checkpoint.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "train/b").symlink_to(tmp_path / "elsewhere")
    for name in ("train/.DS_Store", "train/a/.DS_Store", "train/a/._1.png", "elsewhere/._2.png"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    images, classes = read_folder(tmp_path / "train")
    assert classes == ("a", "b") and images.labels.tolist() == [0, 1]
    (tmp_path / "elsewhere/3.png").symlink_to("/not/mounted.png")
    with pytest.raises(BadDataFileError, match=r"train/b/3\.png cannot be decoded: .*No such file"):
        read_folder(tmp_path / "train")
    (tmp_path / "train/c").symlink_to("/not/mounted")
    with pytest.raises(ValueError, match="train/c is a link to /not/mounted, which does not exist"):
        read_folder(tmp_path / "train")


def test_a_small_file_of_something_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip file is decompressed up to a limit; dimensions whose product overflows 64 bits are not 0."""
    monkeypatch.setattr("gbseg.data.arrays._LIMIT", 2**24)
    path = tmp_path / "train-images-idx3-ubyte"
    header = struct.pack(">I3I", 0x00000803, 2**31, 2**31, 4)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(header + bytes(2**24), 1))
    with pytest.raises(BadDataFileError, match=r"ubyte\.gz \([\d,]+ bytes\) holds more than 16,777,216 bytes"):
        read_idx(path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/test_batch.gz").write_bytes(gzip.compress(bytes(2**24 + 1), 1))
    with pytest.raises(BadDataFileError, match=r"test_batch\.gz \([\d,]+ bytes\) holds more than 16,777,216 bytes"):
        read_cifar10(tmp_path, False)
    path.write_bytes(header)
    with pytest.raises(BadDataFileError, match=r"holds 0 bytes, its header .* asks for 18446744073709551616"):
        read_idx(path)


def _loader(cifar: Path, batch: int, start: int = 0, **options: object) -> DataLoader:
    dataset = SeededDataset(ArrayImages("CIFAR10", cifar, device="cpu", **options))
    sampler = ResumableSampler(dataset, seed=5)
    sampler.skip(start)
    return DataLoader(dataset, batch_sampler=BatchSampler(sampler, batch, False), collate_fn=as_is)


def _take(loader: DataLoader, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = [batch for batch, _ in zip(loader, range(count), strict=False)]
    return tuple(torch.cat([batch[key] for batch in batches]) for key in ("inputs", "data_samples"))


def test_a_batch_is_the_loop_over_its_images(cifar: Path) -> None:
    """Padded, cropped and mirrored one by one with numpy; the same whatever the batch size, and when started in the middle."""
    images = read_cifar10(cifar, True)
    sampler = ResumableSampler(range(60), seed=5)
    draws = [draw for draw, _ in zip(sampler, range(90), strict=False)]
    expected = []
    for draw in draws:
        top, left, mirrored = uniform_words(5, [draw.draw], 3)[0]
        padded = np.pad(images.pixels[int(draw)], ((0, 0), (4, 4), (4, 4)))
        crop = padded[:, top % 9 : top % 9 + 32, left % 9 : left % 9 + 32]
        expected.append(crop[:, :, ::-1] if mirrored % 2 else crop)
    for batch in (10, 18):
        pixels, labels = _take(_loader(cifar, batch, pad=4, flip=True), 90 // batch)
        assert (pixels.numpy() == np.stack(expected)).all()
        assert (labels.numpy() == images.labels[[int(draw) for draw in draws]]).all()
    later, _ = _take(_loader(cifar, 10, start=40, pad=4, flip=True), 5)
    assert (later.numpy() == np.stack(expected)[40:]).all()


def test_validation_is_not_augmented(cifar: Path) -> None:
    """Plain indices give the images as they are."""
    dataset = ArrayImages("CIFAR10", cifar, part="test", pad=4, flip=True, device="cpu")
    batch = dataset.__getitems__([3, 0])
    assert (batch["inputs"].numpy() == read_cifar10(cifar, False).pixels[[3, 0]]).all()
    assert dataset[1]["inputs"].shape == (1, 3, 32, 32)


def test_parts_do_not_overlap(cifar: Path) -> None:
    """What is held out is exactly what is not tuned on; a smaller number is its beginning."""
    everything = {row.tobytes() for row in read_cifar10(cifar, True).pixels}
    parts = {
        part: {row.numpy().tobytes() for row in ArrayImages("CIFAR10", cifar, part, held_out=20, device="cpu").pixels}
        for part in ("tune", "held_out")
    }
    assert len(parts["held_out"]) == 20 and len(parts["tune"]) == 40
    assert parts["tune"] | parts["held_out"] == everything
    subset = ArrayImages("CIFAR10", cifar, "tune", held_out=20, num=5, device="cpu")
    assert len(subset) == 5 and {row.numpy().tobytes() for row in subset.pixels} <= parts["tune"]


def test_random_words() -> None:
    """Uniform in each column and bit, uncorrelated between neighbours, and a function of seed and draw alone."""
    words = uniform_words(1, range(60_000), 3)
    for column in words.T:
        counts = np.bincount(column % 9, minlength=9)
        assert (abs(counts - 60_000 / 9) < 5 * (60_000 / 9) ** 0.5).all()
        bits = np.unpackbits(column.copy().view(np.uint8)).reshape(60_000, 32).mean(0)
        assert (abs(bits - 0.5) < 5 * 0.5 / 60_000**0.5).all()
    shares = words / 2**32 - 0.5
    neighbours = np.corrcoef(np.concatenate([shares[:-1], shares[1:]], 1).T)
    assert abs(neighbours - np.eye(6)).max() < 5 / 60_000**0.5
    assert (uniform_words(1, [7, 59_999], 3) == words[[7, 59_999]]).all()
    assert (uniform_words(2, range(100), 3) != words[:100]).mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "SVHN"}, "source is one of"),
        ({"part": "all"}, "part is"),
        ({"part": "tune"}, "needs held_out in 1..59, got 0"),
        ({"num": 61}, "num=61 images asked for, there are 60"),
    ],
)
def test_refused(cifar: Path, options: dict, message: str) -> None:
    """Settings that make no sense."""
    with pytest.raises(ValueError, match=message):
        ArrayImages(**{"source": "CIFAR10", "data_root": cifar, **options})


def test_draws_only_seed(cifar: Path) -> None:
    """The same draw of another seed is another crop."""
    dataset = ArrayImages("CIFAR10", cifar, pad=4, flip=True, device="cpu")
    first, second = (dataset.__getitems__([SampleIndex(k, k, seed) for k in range(60)])["inputs"] for seed in (1, 2))
    assert (first != second).any(dim=(1, 2, 3)).sum() > 50
