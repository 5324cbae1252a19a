"""ImageNet from archives in the official layouts: beside torchvision's own preparation, killed, damaged, hostile."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.imagenet as torchvision_imagenet
from mmpretrain.datasets import ImageNet
from PIL import Image
from real_layouts import in_child, md5_of, tree_of, write_tar
from scipy.io import savemat
from torchvision.datasets import ImageFolder

from gbseg.cli import main
from gbseg.data.prepare import imagenet
from gbseg.data.prepare.archives import ArchiveError
from gbseg.data.prepare.imagenet import ARCHIVES, ILSVRC2012, Release, prepare_imagenet
from gbseg.data.prepare.imagenet_devkit import read_devkit
from gbseg.files import FileWriteError

# WNID -> training images, in the order of the ILSVRC ids, which is not that of the WNIDs
CLASSES = {"n02119789": 3, "n02100735": 2, "n01440764": 4, "n03000247": 1}
LABELS = (3, 1, 4, 1, 2, 3, 3)
KIT = "ILSVRC2012_devkit_t12/data/"


def meta_mat(classes: dict[str, int] = CLASSES) -> bytes:
    """``synsets`` as the development kit's readme describes it: the classes, then groups of them with ids of their own."""
    names = "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"
    rows = [
        (k + 1.0, wnid, f"word {k}, other", "a gloss", 0.0, np.zeros((0, 0)), 0.0, float(number))
        for k, (wnid, number) in enumerate(classes.items())
    ]
    rows.append((1001.0, "n00001740", "entity", "a group", 2.0, np.array([[1.0, 2.0]]), 1.0, 0.0))
    rows.append((1002.0, "n00001930", "physical entity", "another", 3.0, np.array([[3.0, 4.0, 1001.0]]), 2.0, 0.0))
    synsets = np.empty((len(rows), 1), [(name, object) for name in names])
    for k, row in enumerate(rows):
        synsets[k, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def bomb() -> bytes:
    """A MATLAB file of 300 kB whose variable has 300 MB."""
    data = zlib.compress(struct.pack("<II", 14, 300 * 2**20) + bytes(300 * 2**20), 9)
    return meta_mat()[:128] + struct.pack("<II", 15, len(data)) + data


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16 + seed, 20, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG" if seed == 2 else "JPEG")
    return buffer.getvalue()


def tar_bytes(folder: Path, files: dict[str, bytes]) -> bytes:
    write_tar(folder / "inner.tar", files)
    return (folder / "inner.tar").read_bytes()


@dataclass
class Given:
    """Archives, what is in them, and the release that they are."""

    archives: dict[str, Path]
    train: dict[str, bytes]
    val: dict[str, bytes]
    release: Release

    @property
    def tree(self) -> dict[str, bytes]:
        """All files of the result."""
        return {f"train/{k}": v for k, v in self.train.items()} | {f"val/{k}": v for k, v in self.val.items()}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    archives = {key: folder / name for key, name in ARCHIVES.items()}
    wnids = list(CLASSES)
    train = {f"{w}/{w}_{7 * k + 1}.JPEG": jpeg(10 * i + k) for i, w in enumerate(wnids) for k in range(CLASSES[w])}
    inner = {w: {Path(n).name: data for n, data in train.items() if n.startswith(w)} for w in wnids}
    write_tar(archives["train"], {f"{w}.tar": tar_bytes(folder, inner[w]) for w in wnids})
    names = [f"ILSVRC2012_val_{k + 1:08}.JPEG" for k in range(len(LABELS))]
    images = {name: jpeg(100 + k) for k, name in enumerate(names)}
    # in the official archive they are in no order either
    write_tar(archives["val"], {name: images[name] for name in sorted(names, key=lambda name: md5_of(name.encode()))})
    val = {f"{wnids[label - 1]}/{name}": images[name] for label, name in zip(LABELS, names, strict=True)}
    labels = "".join(f"{label}\n" for label in LABELS).encode()
    write_tar(folder / "kit.tgz", {KIT + "meta.mat": meta_mat(), KIT + "ILSVRC2012_validation_ground_truth.txt": labels})
    (folder / "kit.tgz").rename(archives["devkit"])
    (folder / "inner.tar").unlink()
    md5 = {key: md5_of(path.read_bytes()) for key, path in archives.items()}
    return Given(archives, train, val, Release(md5, len(wnids), {"train": len(train), "val": len(val)}))


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for every disk of the machine, for the sake of power cuts."""
    monkeypatch.setattr(os, "sync", lambda: None)


def _changed(given: Given, folder: Path, key: str, files: dict[str, bytes]) -> dict[str, Path]:
    """The archives with another one in place of one."""
    path = folder / "changed.tgz" if key == "devkit" else folder / "changed.tar"
    write_tar(path, files)
    return {**given.archives, key: path}


def test_official_sums() -> None:
    """Those that torchvision knows."""
    for key, name in ARCHIVES.items():
        assert torchvision_imagenet.ARCHIVE_META[key] == (name, ILSVRC2012.md5[key])


def test_what_comes_out(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The very files that torchvision makes of the same archives, read alike by its ImageFolder and MMPretrain's ImageNet."""
    counts = prepare_imagenet(tmp_path / "ours", given.archives, release=given.release)
    assert tree_of(tmp_path / "ours") == given.tree
    assert counts == {"train": CLASSES, "val": Counter(list(CLASSES)[label - 1] for label in LABELS)}
    said = capsys.readouterr().out
    assert f"train: {tmp_path / 'ours/train'}: 4 classes, 10 images\n" in said
    assert f"val: {tmp_path / 'ours/val'}: 4 classes, 7 images\n" in said
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for key, path in given.archives.items():
        (theirs / path.name).symlink_to(path)
        monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, key, (path.name, given.release.md5[key]))
    torchvision_imagenet.parse_devkit_archive(theirs)
    torchvision_imagenet.parse_train_archive(theirs)
    torchvision_imagenet.parse_val_archive(theirs)
    for split, labels in (("train", [0] * 4 + [1] * 2 + [2] * 3 + [3]), ("val", None)):
        assert tree_of(theirs / split) == tree_of(tmp_path / "ours" / split)
        folder = ImageFolder(tmp_path / "ours" / split)
        ours = ImageNet(data_root=str(tmp_path / "ours"), split=split, metainfo=dict(classes=sorted(CLASSES)))
        infos = [ours.get_data_info(k) for k in range(len(ours))]
        assert folder.classes == sorted(CLASSES)
        assert [(info["img_path"], info["gt_label"]) for info in infos] == folder.samples
        assert labels is None or folder.targets == labels
    assert folder.targets == [0, 0, 0, 1, 2, 2, 3]  # of val


def test_done_again(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A second run changes nothing, not even a time; where all is there, without the archives."""
    root = tmp_path / "imagenet"
    root.mkdir()
    for path in given.archives.values():
        (root / path.name).symlink_to(path)
    # by the command; the counts are not the official ones
    assert main(["prepare-imagenet", str(root), "--no-verify"]) == 0
    said = capsys.readouterr().out
    assert "warning" in said and "4 classes instead of 1,000; 10 images instead of 1,281,167." in said
    assert "7 images instead of 50,000." in said and "train: 10 images written now" in said
    times = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    assert main(["prepare-imagenet", str(root), "--no-verify"]) == 0
    assert "train: 0 images written now" in capsys.readouterr().out
    for path in given.archives.values():
        (root / path.name).unlink()
    prepare_imagenet(root, release=given.release)
    assert f"train: {root / 'train'} was there; ILSVRC2012_img_train.tar is not needed" in capsys.readouterr().out
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == {
        k: v for k, v in times.items() if k.parent != root
    } | {root / split: times[root / split] for split in ("train", "val")}


def test_one_split(given: Given, tmp_path: Path) -> None:
    """The training set without the development kit, the validation set without the training archive."""
    kit, train, val = (given.archives[key] for key in ("devkit", "train", "val"))
    prepare_imagenet(tmp_path, {"train": train}, splits=["train"], release=given.release)
    assert tree_of(tmp_path) == {k: v for k, v in given.tree.items() if k.startswith("train/")}
    prepare_imagenet(tmp_path, {"val": val, "devkit": kit}, splits=["val"], release=given.release)
    assert tree_of(tmp_path) == given.tree


@pytest.mark.slow
def test_killed_at_every_rename(given: Given, tmp_path: Path) -> None:
    """No name has half a file behind it, and the next run has all, without what the killed one left."""

    def killed(number: int, root: Path) -> None:
        count, replace = iter(range(10**6)), os.replace

        def dying(*names: object) -> None:
            if next(count) == number:
                os.kill(os.getpid(), 9)
            replace(*names)  # type: ignore[arg-type]

        os.replace = dying  # type: ignore[assignment]
        prepare_imagenet(root, given.archives, release=given.release)

    for number in (0, 3, 7, 8, 12, 16):
        root = tmp_path / str(number)
        assert in_child(lambda number=number, root=root: killed(number, root)) is None
        tree = tree_of(root)
        visible = {name: data for name, data in tree.items() if not Path(name).name.startswith(".")}
        assert len(visible) == number and visible.items() <= given.tree.items() and len(tree) == number + 1
        prepare_imagenet(root, given.archives, release=given.release)
        assert tree_of(root) == given.tree


def test_what_is_there(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Cut and empty images are replaced, others stay and are told of."""
    names = list(given.tree)
    states = {
        names[0]: given.tree[names[0]][:100],
        names[1]: b"",
        names[5]: b"mine",
        names[-1]: given.tree[names[-1]] + b"longer",
    }
    for name, data in states.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    prepare_imagenet(tmp_path, given.archives, release=given.release)
    assert tree_of(tmp_path) == {**given.tree, names[5]: b"mine", names[-1]: given.tree[names[-1]] + b"longer"}
    said = capsys.readouterr().out
    assert said.count("warning: 1 images are not those of") == 2 and str(tmp_path / names[5]) in said


def test_empty_image_of_a_power_cut(given: Given, tmp_path: Path) -> None:
    """All names are there: the set is still not taken for whole."""
    prepare_imagenet(tmp_path, given.archives, release=given.release)
    name = next(iter(given.tree))
    (tmp_path / name).write_bytes(b"")
    prepare_imagenet(tmp_path, given.archives, release=given.release)
    assert tree_of(tmp_path) == given.tree


def test_missing_and_wrong_archives(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One sentence, before anything is unpacked."""
    arguments = ["prepare-imagenet", str(tmp_path), *(f"--{k}-tar={given.archives[k]}" for k in ("train", "val"))]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"there is no {tmp_path / ARCHIVES['devkit']}, which val is made of" in said and "--devkit." in said
    assert main([*arguments, f"--devkit={given.archives['devkit']}"]) == 1
    said = capsys.readouterr().err
    assert f"has the MD5 {given.release.md5['devkit']}, the official file has fa75699e90414af021442c21a62c3abf" in said
    assert "Fetch ILSVRC2012_devkit_t12.tar.gz from image-net.org again, or say --no-verify" in said
    md5 = {**given.release.md5, "train": "0" * 32}
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar has the MD5"):
        prepare_imagenet(tmp_path, given.archives, splits=["train"], release=Release(md5, 4, given.release.images))
    assert tree_of(tmp_path) == {}


def test_other_counts(given: Given, tmp_path: Path) -> None:
    """Refused with the classes that differ named; what is there stays."""
    official = Release(given.release.md5, 5, {"train": 11, "val": 7})
    with pytest.raises(ValueError, match=r"4 classes instead of 5; 10 images instead of 11\. Remove .* --no-verify"):
        prepare_imagenet(tmp_path, given.archives, splits=["train"], release=official)
    (tmp_path / "train/notes").mkdir()
    own = [tmp_path / f"train/n02119789/n02119789_{number}.JPEG" for number in (9, 99)]
    for path in own:
        path.write_bytes(b"mine")
    with pytest.raises(
        ValueError,
        match=r"5 classes instead of 4; 12 images instead of 10; folders that are no class: notes; "
        r"in 1 classes another number of images: n02119789 5 instead of 3\. ",
    ):
        prepare_imagenet(tmp_path, given.archives, splits=["train"], release=given.release)
    assert [path.read_bytes() for path in own] == [b"mine"] * 2


def test_flat_folder(given: Given, tmp_path: Path) -> None:
    """The archive unpacked as it is: said, before a second copy is made."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"val holds images without folders of their classes \(ILSVRC2012_val_00000001"):
        prepare_imagenet(tmp_path, given.archives, release=given.release)
    assert list(tree_of(tmp_path)) == ["val/ILSVRC2012_val_00000001.JPEG"]


def test_links_and_hidden_names(given: Given, tmp_path: Path) -> None:
    """A class may be a link, and so may a folder in it; names with a dot are no classes and no images."""
    root = tmp_path / "root"
    prepare_imagenet(root, given.archives, release=given.release)
    before = {split: imagenet.count_images(root / split) for split in ("train", "val")}
    (root / "train/n01440764").rename(tmp_path / "elsewhere")
    (root / "train/n01440764").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "more").mkdir()
    first = next((tmp_path / "elsewhere").iterdir())
    first.rename(tmp_path / "more" / first.name)
    (tmp_path / "elsewhere/part2").symlink_to(tmp_path / "more")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/.ipynb_checkpoints/a.JPEG").write_bytes(b"x")
    (root / "train/n02100735/._a.JPEG").write_bytes(b"x")
    assert {split: imagenet.count_images(root / split) for split in ("train", "val")} == before
    (tmp_path / "more/round").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=rf"n01440764/part2/round is a link to {tmp_path}/elsewhere, which holds the link itself"
    ):
        imagenet.count_images(root / "train")


def test_sparse_members(given: Given, tmp_path: Path) -> None:
    """A few bytes that say they are a terabyte of zeros are refused, and not read."""
    inner = tmp_path / "inner.tar"
    with tarfile.open(inner, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("n01440764_1.JPEG")
        member.size = 1024
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": member.name}
        member.pax_headers["GNU.sparse.realsize"] = str(2**40)
        tar.addfile(member, io.BytesIO(b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)))
    archives = _changed(given, tmp_path, "train", {"n01440764.tar": inner.read_bytes()})
    with pytest.raises(ArchiveError, match=r"holds 'n01440764_1\.JPEG', which is refused"):
        prepare_imagenet(tmp_path / "root", archives, False, ["train"])


def test_cut(given: Given, tmp_path: Path) -> None:
    """Wherever the training archive ends, within an inner archive as well: named, what is there is whole, and it goes on."""
    data = given.archives["train"].read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512
    cut = tmp_path / "cut.tar"
    root = tmp_path / "root"
    for length in sorted({*range(0, end, 512 * 7), *range(100, end, 6000), end - 1}):
        cut.write_bytes(data[:length])
        with pytest.raises(ArchiveError, match=r"cut\.tar.* (is damaged or cut short|is no tar archive): ") as caught:
            prepare_imagenet(root, {"train": cut}, False, ["train"])
        assert "\n" not in str(caught.value)
        assert {f"train/{k}": v for k, v in given.train.items()}.items() >= tree_of(root).items()
    assert len(tree_of(root)) == 9
    cut.write_bytes(data)
    prepare_imagenet(root, {"train": cut}, False, ["train"])
    assert tree_of(root) == {f"train/{k}": v for k, v in given.train.items()}
    # a class's archive that ends too early inside of a whole one
    inner = tar_bytes(tmp_path, {"n01440764_1.JPEG": jpeg(0), "n01440764_2.JPEG": jpeg(1)})
    # between two members: only the blocks of zeros are missing
    archives = _changed(given, tmp_path, "train", {"n01440764.tar": inner[: -(-len(inner.rstrip(b"\0")) // 512) * 512]})
    with pytest.raises(ArchiveError, match=r"changed\.tar: n01440764\.tar is damaged or cut short: .*whole and stays"):
        prepare_imagenet(tmp_path / "inner", archives, False, ["train"])
    archives = _changed(given, tmp_path, "train", {"n01440764.tar": b"<html>" + bytes(2000)})
    with pytest.raises(ArchiveError, match=r"n01440764\.tar is no tar archive: it begins with b'<html>"):
        prepare_imagenet(tmp_path / "inner", archives, False, ["train"])


def _link(name: str, kind: bytes, target: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("key", "name", "data"),
    [
        ("train", "../n01440764.tar", b""),
        ("train", "/tmp/n01440764.tar", b""),
        ("train", "evil.sh", b"#!"),
        ("train", "n01440764.tar", {"../n01440764_1.JPEG": b"x"}),
        ("train", "n01440764.tar", {"/n01440764_1.JPEG": b"x"}),
        ("train", "n01440764.tar", {"n02119789_1.JPEG": b"x"}),
        ("train", "n01440764.tar", _link("n01440764_1.JPEG", tarfile.SYMTYPE, "/etc/passwd")),
        ("train", "n01440764.tar", _link("n01440764_1.JPEG", tarfile.LNKTYPE, "../../evil")),
        ("val", "../ILSVRC2012_val_00000001.JPEG", b"x"),
        ("val", "ILSVRC2012_val_00000001.JPEG\n", b"x"),
    ],
)
def test_hostile_members(given: Given, tmp_path: Path, key: str, name: str, data: bytes | dict[str, bytes]) -> None:
    """Archive and member are named, and nothing is written anywhere."""
    content = tar_bytes(tmp_path, data) if isinstance(data, dict) else data
    archives = _changed(given, tmp_path, key, {name: content})
    before = tree_of(tmp_path)
    with pytest.raises(ArchiveError, match=r"changed\.tar.* holds '.*', which is refused: only files such as"):
        prepare_imagenet(tmp_path / "in/root", archives, False, [key])
    assert tree_of(tmp_path) == before


def test_members_that_are_no_images(given: Given, tmp_path: Path) -> None:
    """Left out and named at the end; the others are there."""
    inner = {"n01440764_1.JPEG": jpeg(0), "n01440764_2.JPEG": b"<html>", "n01440764_3.JPEG": b"", "n01440764_4.JPEG": jpeg(4)}
    archives = _changed(given, tmp_path, "train", {"n01440764.tar": tar_bytes(tmp_path, inner)})
    with pytest.raises(ArchiveError, match=r"2 of its files are no images \(n01440764_2\.JPEG, n01440764_3\.JPEG\)"):
        prepare_imagenet(tmp_path / "root", archives, False, ["train"])
    assert set(tree_of(tmp_path / "root")) == {f"train/n01440764/n01440764_{k}.JPEG" for k in (1, 4)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels": b"1\n5\n"}, r"a validation label is no class of data/meta\.mat: 5\."),
        ({"labels": b"1\nn01440764\n"}, r"a validation label is no class of data/meta\.mat: invalid literal"),
        ({"labels": b""}, r"holds no data/ILSVRC2012_validation_ground_truth\.txt\. Put the official"),
        ({"meta": meta_mat({"../../evil": 1})}, r"data/meta\.mat names '\.\./\.\./evil', which is no WordNet ID"),
        ({"meta": b"no matrix at all" * 20}, r"data/meta\.mat cannot be read: "),
        ({"meta": bomb()}, r"data/meta\.mat cannot be read: .*its variables have more than 268,435,456 bytes"),
        ({"labels": bytes(2**28 + 1)}, r"holds \S+ground_truth\.txt of 268,435,457 bytes, and at most 268,435,456 are read"),
        (
            {"labels": b"1\n2\n"},
            r"holds ILSVRC2012_val_0000000\d\.JPEG, and the development kit has labels of the images 1\.\.2",
        ),
    ],
)
def test_bad_devkit(given: Given, tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """Each in one sentence, and no image is sorted into a wrong class."""
    content = {"meta": meta_mat(), "labels": b"1\n" * 7} | files
    names = {"meta": KIT + "meta.mat", "labels": KIT + "ILSVRC2012_validation_ground_truth.txt"}
    archives = _changed(given, tmp_path, "devkit", {names[key]: data for key, data in content.items()})
    with pytest.raises(ArchiveError, match=message):
        prepare_imagenet(tmp_path / "root", archives, False, ["val"])


def test_devkit_without_image_counts(given: Given, tmp_path: Path) -> None:
    """A meta.mat of fewer fields serves as well; groups of classes are no classes."""
    buffer = io.BytesIO()
    synsets = np.empty((2, 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")])
    synsets[0, 0], synsets[1, 0] = (1.0, "n01440764", "tench", "", 0.0), (2.0, "n00001740", "entity", "", 1.0)
    savemat(buffer, {"synsets": synsets})
    content = {"data/meta.mat": buffer.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": b"1\n1\n"}
    kit = read_devkit(_changed(given, tmp_path, "devkit", content)["devkit"])
    assert kit.train_images == {"n01440764": None} and kit.val == ["n01440764", "n01440764"]


def test_full_disk(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the first image where nothing is there yet; while writing, no file is cut."""
    usage = imagenet.shutil.disk_usage
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(FileWriteError, match=r"train needs about .* are free; nothing was written"):
        prepare_imagenet(tmp_path, given.archives, splits=["train"], release=given.release)
    monkeypatch.undo()
    sizes = sorted(len(data) for data in given.train.values())
    error = in_child(lambda: prepare_imagenet(tmp_path, given.archives, release=given.release), limit=sizes[5])
    assert error and error.startswith("FileWriteError") and "JPEG could not be written: File too large" in error
    assert tree_of(tmp_path).items() <= given.tree.items()


def test_really_full_disk(given: Given, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture) -> None:
    """What to do is said; once there is room, the same command continues."""
    root = small_disk(96)
    (root / "train").mkdir()
    # room for five files; a file takes whole pages of this disk
    (root / "other").write_bytes(bytes((96 - 5 * 4) * 1024))
    arguments = ["prepare-imagenet", str(root), f"--train-tar={given.archives['train']}", "--no-verify", "--splits", "train"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "JPEG could not be written: No space left on device" in said
    assert "Make room first; what is done stays done, the same command continues." in said
    assert 0 < len(tree_of(root / "train")) < 10
    (root / "other").unlink()
    assert main(arguments) == 0
    assert tree_of(root / "train") == given.train
