"""ImageNet (ILSVRC 2012), from its official archives to the folders that torchvision's ImageFolder and MMPretrain read.

Layout: ``<root>/train/<WNID>/<WNID>_<number>.JPEG`` and ``<root>/val/<WNID>/ILSVRC2012_val_<number>.JPEG``, where a WNID is a
class's WordNet ID such as n01440764; the class numbers of training are the places in the sorted WNIDs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gbseg.data.prepare.archives import ArchiveError, damage_named, open_tar, require_end
from gbseg.data.prepare.download import byte_progress, require_md5
from gbseg.data.prepare.imagenet_devkit import DEVKIT, WNID, Devkit, read_devkit
from gbseg.files import FileWriteError, only_process, remove_temporary_files, spoken_errors, write_atomically

__all__ = ["ARCHIVES", "ILSVRC2012", "SPLITS", "Release", "count_images", "prepare_imagenet"]

SPLITS = ("train", "val")
ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
    "devkit": DEVKIT,
}


@dataclass(frozen=True)
class Release:
    """What the official archives are.

    Attributes:
        md5: of each of `ARCHIVES`, in hexadecimal digits.
        classes: how many.
        images: of each of `SPLITS`.
    """

    md5: Mapping[str, str]
    classes: int
    images: Mapping[str, int]


ILSVRC2012 = Release(
    md5={
        "train": "1d675b47d978889d74fa0da5fadfb00e",
        "val": "29b22e2961454d5413ddabcf34fc5622",
        "devkit": "fa75699e90414af021442c21a62c3abf",
    },
    classes=1000,
    images={"train": 1_281_167, "val": 50_000},
)


def prepare_imagenet(
    root: str | Path,
    archives: Mapping[str, str | Path | None] | None = None,
    verify: bool = True,
    splits: Sequence[str] = SPLITS,
    release: Release = ILSVRC2012,
) -> dict[str, Counter[str]]:
    """Unpack whatever is missing of ImageNet, image by image, and say what was done.

    Nothing is unpacked twice, so that an interrupted run is continued by the next, and a second run changes nothing: an image
    that is there in its full size is skipped, one that is cut is written again, any other file stays as it is. The archives of
    the classes are read inside of the training archive: beside the archives, the disk holds the images once.

    Args:
        root: ImageNet's folder; the archives are looked for in it.
        archives: those that lie elsewhere, by the keys of `ARCHIVES`.
        verify: refuse an archive with a wrong MD5, and counts other than the release's. Otherwise these are only warned of.
        splits: which of 'train' and 'val'; the development kit is needed for 'val', and used for 'train' if it is there.
        release: MD5 sums and counts to expect.

    Returns:
        For each split the number of images of each class.

    Raises:
        ValueError: an archive is missing, not the official one, damaged, or holds what must not be unpacked; the folder has
            other images than it should. What was unpacked until then is whole, and stays.
        OSError: a file could not be read or written; FileWriteError where the disk is full.
        RuntimeError: another process prepares this folder.
    """
    root = Path(root)
    given = {key: Path((archives or {}).get(key) or root / name) for key, name in ARCHIVES.items()}
    counts = {}
    with spoken_errors():
        root.mkdir(parents=True, exist_ok=True)
        with only_process(root):
            missing = []
            for split in splits:
                counts[split] = count_images(root / split)
                if _is_whole(counts[split], split, release):
                    print(f"{split}: {root / split} was there; {given[split].name} is not needed")
                else:
                    missing.append(split)
            for split in missing:
                _require_archives(given, split)
            kit = None
            if missing and given["devkit"].is_file():
                _verify(given, "devkit", verify, release)
                kit = read_devkit(given["devkit"])
            # val first: it is small, and shows within minutes whether all is well
            for split in sorted(missing, reverse=True):
                _verify(given, split, verify, release)
                _require_room(given[split], root / split)
                placed = _unpack(split, given[split], root / split, kit)
                counts[split] = count_images(root / split)
                placed.report(split, given[split])
                _check_counts(counts[split], root / split, split, kit, release, verify)
    for split in splits:
        images = counts[split]
        print(f"{split}: {root / split}: {len(images):,} classes, {images.total():,} images")
    return counts


def count_images(folder: Path) -> Counter[str]:
    """How many images, not counting empty files, each class of a split has."""
    counts: Counter[str] = Counter()
    if folder.is_dir():
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            if entry.is_dir():
                images = (one for one in os.scandir(entry.path) if one.name.lower().endswith(".jpeg"))
                counts[entry.name] = sum(not one.name.startswith(".") and one.stat().st_size > 0 for one in images)
            elif entry.name.startswith("ILSVRC2012_val_"):
                raise ValueError(
                    f"{folder} holds images without folders of their classes ({entry.name}, ...): move them out of it, and "
                    "they are unpacked again, sorted into classes."
                )
    return counts


_CLASS_TAR = re.compile(rf"({WNID})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# one of the official .JPEG files is a PNG
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_KEPT = "What was unpacked so far is whole and stays: put another copy there, and the same command continues."


@dataclass
class _Placed:
    """What was done with the members of an archive."""

    written: int = 0
    other: list[Path] = field(default_factory=list)
    no_image: list[str] = field(default_factory=list)

    def place(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        """Write one image, unless it is there."""
        size = path.stat().st_size if path.is_file() else 0
        if size == member.size > 0:
            return
        data = tar.extractfile(member).read()  # type: ignore[union-attr]
        if size and not data.startswith(path.read_bytes()):
            self.other.append(path)
        elif not data.startswith(_MAGIC):
            self.no_image.append(member.name)
        else:
            # whether it is whole shows in its size
            write_atomically(data, path, durable=False)
            self.written += 1

    def report(self, split: str, archive: Path) -> None:
        """Say it; refuse an archive that held something else than images."""
        print(f"{split}: {self.written:,} images written now")
        if self.other:
            print(
                f"warning: {len(self.other):,} images are not those of {archive} and stay as they are ({self.other[0]}, ...): "
                "remove them to have the archive's."
            )
        if self.no_image:
            raise ArchiveError(
                f"{archive}: {len(self.no_image):,} of its files are no images ({', '.join(self.no_image[:3])}"
                f"{', ...' if len(self.no_image) > 3 else ''}). The others are unpacked. {_KEPT}"
            )


def _unpack(split: str, archive: Path, folder: Path, kit: Devkit | None) -> _Placed:
    placed = _Placed()
    with damage_named(archive, _KEPT), archive.open("rb") as file, byte_progress() as progress:
        bar = progress.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
        with open_tar(archive, file, _KEPT) as tar:
            if split == "train":
                _unpack_train(archive, tar, folder, placed, lambda: progress.update(bar, completed=file.tell()))
            else:
                assert kit is not None
                _unpack_val(archive, tar, folder, placed, kit, lambda: progress.update(bar, completed=file.tell()))
            require_end(tar)
    if placed.written:
        # the sizes by which a later run knows that it is done
        os.sync()
    return placed


def _unpack_train(archive: Path, tar: tarfile.TarFile, folder: Path, placed: _Placed, advance: Callable[[], None]) -> None:
    for member, match in _members(archive, tar, _CLASS_TAR):
        name, wnid = f"{archive}: {member.name}", match[1]
        remove_temporary_files(folder / wnid)
        with damage_named(name, _KEPT), open_tar(name, tar.extractfile(member), _KEPT) as images:  # type: ignore[arg-type]
            for image, _ in _members(name, images, re.compile(rf"{wnid}_\d+\.JPEG")):
                placed.place(images, image, folder / wnid / image.name.removeprefix("./"))
                advance()
            require_end(images)


def _unpack_val(
    archive: Path, tar: tarfile.TarFile, folder: Path, placed: _Placed, kit: Devkit, advance: Callable[[], None]
) -> None:
    for wnid in set(kit.val):
        remove_temporary_files(folder / wnid)
    for member, match in _members(archive, tar, _VAL_IMAGE):
        number = int(match[1])
        if not 1 <= number <= len(kit.val):
            raise ArchiveError(
                f"{archive} holds {member.name}, and the development kit has labels of the images 1..{len(kit.val)}: the two "
                f"do not belong together. {_KEPT}"
            )
        placed.place(tar, member, folder / kit.val[number - 1] / match[0])
        advance()


def _members(
    archive: str | Path, tar: tarfile.TarFile, name: re.Pattern[str]
) -> Iterator[tuple[tarfile.TarInfo, re.Match[str]]]:
    """The files of a tar archive, all of which must have such a name: nothing else can come to lie anywhere."""
    for member in tar:
        if member.isdir():
            continue
        match = name.fullmatch(member.name.removeprefix("./"))
        # a link may point, and a sparse file may grow, to anything
        if match is None or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArchiveError(
                f"{archive} holds {member.name!r}, which is refused: only files such as {name.pattern} belong there. This is "
                "not the official archive, do not trust it."
            )
        yield member, match


def _is_whole(counts: Counter[str], split: str, release: Release) -> bool:
    return len(counts) == release.classes and counts.total() == release.images[split]


def _require_archives(given: Mapping[str, Path], split: str) -> None:
    for key in ("devkit", "val") if split == "val" else ("train",):
        if not given[key].is_file():
            raise ValueError(
                f"there is no {given[key]}, which {split} is made of: {ARCHIVES[key]} comes from image-net.org, which asks you "
                f"to register. Put it there, or say where it is by {'--devkit' if key == 'devkit' else f'--{key}-tar'}."
            )


def _verify(given: Mapping[str, Path], key: str, verify: bool, release: Release) -> None:
    if verify:
        require_md5(given[key], release.md5[key], f"Fetch {ARCHIVES[key]} from image-net.org again")


def _require_room(archive: Path, folder: Path) -> None:
    # of a run that is continued, nobody knows how much is missing
    needed, free = archive.stat().st_size, shutil.disk_usage(folder.parent).free
    if not folder.exists() and needed > free:
        raise FileWriteError(
            errno.ENOSPC,
            f"{folder} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; nothing was written",
        )


def _check_counts(counts: Counter[str], folder: Path, split: str, kit: Devkit | None, release: Release, verify: bool) -> None:
    problems = []
    if len(counts) != release.classes:
        problems.append(f"{len(counts):,} classes instead of {release.classes:,}")
    if counts.total() != release.images[split]:
        problems.append(f"{counts.total():,} images instead of {release.images[split]:,}")
    expected = kit.per_class(split) if kit is not None else {}
    if extra := [wnid for wnid in counts if kit is not None and wnid not in kit.train_images]:
        problems.append(f"folders that are no class: {_some(extra)}")
    if wrong := [f"{k} {counts[k]:,} instead of {n:,}" for k, n in expected.items() if n is not None and counts[k] != n]:
        problems.append(f"in {len(wrong):,} classes another number of images: {_some(wrong)}")
    if not problems:
        return
    said = f"{folder} is not the official {split} set: it has {'; '.join(problems)}"
    if verify:
        raise ValueError(f"{said}. Remove what does not belong there; the same command adds what is missing. {_MEANT}")
    print(f"warning: {said}.")


_MEANT = "Or say --no-verify if this is meant."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
