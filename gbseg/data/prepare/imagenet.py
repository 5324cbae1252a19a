"""ImageNet (ILSVRC 2012), from its official archives to the folders that torchvision's ImageFolder and MMPretrain read.

Layout: ``<root>/train/<WNID>/<WNID>_<number>.JPEG`` and ``<root>/val/<WNID>/ILSVRC2012_val_<number>.JPEG``, where a WNID is a
class's WordNet ID such as n01440764. The class indices of training are the positions in the sorted WNIDs.
"""

import errno
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gbseg.data.lists import abbreviate
from gbseg.data.prepare.archives import ArchiveError, open_tar, read_member
from gbseg.data.prepare.download import require_md5
from gbseg.data.prepare.imagenet_devkit import DEVKIT, WNID, Devkit, read_devkit
from gbseg.files import (
    FileWriteError,
    class_folders,
    is_dead_link,
    lock_folder,
    readable_os_errors,
    remove_temporary_files,
    sync_disks,
    visible_entries,
    walk_files,
    write_atomically,
)

__all__ = ["ARCHIVES", "ILSVRC2012", "SPLITS", "Release", "count_images", "prepare_imagenet"]

#: The splits that can be prepared.
SPLITS = ("train", "val")
#: File names of the official archives.
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar", "devkit": DEVKIT}


@dataclass(frozen=True)
class Release:
    """MD5 sums and counts of the official archives.

    Attributes:
        md5: the MD5 of each of `ARCHIVES`, in hexadecimal digits.
        classes: the number of classes.
        images: the number of images of each of `SPLITS`.
    """

    md5: Mapping[str, str]
    classes: int
    images: Mapping[str, int]


#: The release of 2012, whose classification data are those of the years since.
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
    """Unpack what is missing of ImageNet, image by image, and print what was done.

    Nothing is unpacked twice: an image that exists in its full size is skipped, one that is cut off is written again, and any
    other file stays as it is. So the next run continues an interrupted one, and a second run changes nothing. The archives of
    the classes are read from within the training archive: beside the archives, the disk holds every image once.

    Args:
        root: ImageNet's folder, in which the archives are looked for.
        archives: paths of archives that lie elsewhere, by the keys of `ARCHIVES`.
        verify: refuse archives with a wrong MD5 and folders with other counts than the release's. If False, other counts are
            only warned of.
        splits: a selection of 'train' and 'val'. 'val' needs the development kit; 'train' uses it if it is there.
        release: expected MD5 sums and counts.

    Returns:
        For each split the number of images of each class.

    Raises:
        ValueError: an archive is missing, not the official one or damaged, or holds files that must not be unpacked; or the
            folder has other images than the release. What was unpacked so far is complete and stays.
        OSError: a file could not be read or written; FileWriteError if the disk is full.
        RuntimeError: another process prepares this folder.
    """
    root = Path(root)
    paths = {key: Path((archives or {}).get(key) or root / name) for key, name in ARCHIVES.items()}
    with readable_os_errors(), lock_folder(root):
        counts = {split: count_images(root / split) for split in splits}
        complete = {split: (release.classes, release.images[split]) for split in splits}
        missing = [split for split in splits if (len(counts[split]), counts[split].total()) != complete[split]]
        for split in splits:
            if split in missing:
                _require_archives(paths, split)
            else:
                print(f"{split}: {root / split} was there; {paths[split].name} is not needed")
        devkit = None
        if missing and paths["devkit"].is_file():
            _require_official(paths, "devkit", verify, release)
            devkit = read_devkit(paths["devkit"])
        # val first: it is small, and shows within minutes whether all is well
        for split in sorted(missing, reverse=True):
            _require_official(paths, split, verify, release)
            _require_space(paths[split], root / split)
            unpacking = _Unpacking(paths[split], root / split)
            if split == "train":
                unpacking.train()
            else:
                assert devkit is not None
                unpacking.val(devkit)
            counts[split] = count_images(root / split)
            unpacking.report(split)
            _check_counts(counts[split], root / split, split, devkit, release, verify)
    for split in splits:
        print(f"{split}: {root / split}: {len(counts[split]):,} classes, {counts[split].total():,} images")
    return counts


def count_images(folder: Path) -> Counter[str]:
    """The number of images of each class of a split; empty and hidden files do not count.

    Raises:
        ValueError: validation images lie in the split's folder itself instead of in folders of their classes.
    """
    counts: Counter[str] = Counter()
    if not folder.is_dir():
        return counts
    if flat := next((path.name for path in visible_entries(folder) if path.name.startswith("ILSVRC2012_val_")), None):
        raise ValueError(
            f"{folder} holds images without folders of their classes ({flat}, ...): move them out of it, and "
            "they are unpacked again, sorted into classes."
        )
    for name in class_folders(folder):
        images = (path for path in walk_files(folder / name) if path.name.lower().endswith(".jpeg"))
        counts[name] = sum(not is_dead_link(path) and path.stat().st_size > 0 for path in images)
    return counts


_CLASS_TAR = re.compile(rf"({WNID})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# one of the official .JPEG files is a PNG
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_KEPT = "What was unpacked so far is whole and stays: put another copy there, and the same command continues."


@dataclass
class _Unpacking:
    """Unpacks the images of an archive into folders of their classes, and counts what it met."""

    archive: Path
    folder: Path
    written: int = 0
    different: list[Path] = field(default_factory=list)
    no_image: list[str] = field(default_factory=list)

    def train(self) -> None:
        """Unpack the training archive, which holds one archive per class."""
        with open_tar(self.archive, _KEPT) as tar:
            for member, match in _members(self.archive, tar, _CLASS_TAR):
                name, wnid = f"{self.archive}: {member.name}", match[1]
                remove_temporary_files(self.folder / wnid)
                with open_tar(name, _KEPT, tar.extractfile(member)) as images:
                    for image, _ in _members(name, images, re.compile(rf"{wnid}_\d{{1,12}}\.JPEG")):
                        self.write(images, image, self.folder / wnid / image.name.removeprefix("./"))

    def val(self, devkit: Devkit) -> None:
        """Unpack the validation archive, which holds all images in one folder."""
        for wnid in set(devkit.val):
            remove_temporary_files(self.folder / wnid)
        with open_tar(self.archive, _KEPT) as tar:
            for member, match in _members(self.archive, tar, _VAL_IMAGE):
                number = int(match[1])
                if not 1 <= number <= len(devkit.val):
                    raise ArchiveError(
                        f"{self.archive} holds {member.name}, and the development kit has labels of the images "
                        f"1..{len(devkit.val)}: the two do not belong together. {_KEPT}"
                    )
                self.write(tar, member, self.folder / devkit.val[number - 1] / match[0])

    def write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        """Write one image, unless it exists."""
        size = path.stat().st_size if path.is_file() else 0
        if size == member.size > 0:
            return
        data = read_member(tar, member, self.archive)
        if size and not data.startswith(path.read_bytes()):
            self.different.append(path)
        elif not data.startswith(_MAGIC):
            self.no_image.append(member.name)
        else:
            # not durable: an image that is cut off shows in its size
            write_atomically(data, path, durable=False)
            self.written += 1

    def report(self, split: str) -> None:
        """Print what was done; refuse an archive that held something else than images."""
        if self.written:
            # later runs trust the sizes of the files
            sync_disks()
        print(f"{split}: {self.written:,} images written now")
        if self.different:
            print(
                f"warning: {len(self.different):,} images are not those of {self.archive} and stay as they are "
                f"({self.different[0]}, ...): remove them to have the archive's."
            )
        if self.no_image:
            raise ArchiveError(
                f"{self.archive}: {len(self.no_image):,} of its files are no images ({abbreviate(self.no_image, 3)}). "
                f"The others are unpacked. {_KEPT}"
            )


def _members(
    archive: str | Path, tar: tarfile.TarFile, name: re.Pattern[str]
) -> Iterator[tuple[tarfile.TarInfo, re.Match[str]]]:
    """The files of a tar archive. All names must match the pattern, so nothing is written outside of the folders."""
    for member in tar:
        if member.isdir():
            continue
        match = name.fullmatch(member.name.removeprefix("./"))
        # a link may point, and a sparse file may grow, to anything
        if match is None or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise ArchiveError(
                f"{archive} holds {member.name!r}, which is refused: only files such as {name.pattern} belong there. This is "
                "not the official archive, do not trust it."
            )
        yield member, match


def _require_archives(paths: Mapping[str, Path], split: str) -> None:
    for key in ("devkit", "val") if split == "val" else ("train",):
        if not paths[key].is_file():
            raise ValueError(
                f"there is no {paths[key]}, which {split} is made of: {ARCHIVES[key]} comes from image-net.org, which asks you "
                f"to register. Put it there, or say where it is by {'--devkit' if key == 'devkit' else f'--{key}-tar'}."
            )


def _require_official(paths: Mapping[str, Path], key: str, verify: bool, release: Release) -> None:
    if verify:
        require_md5(paths[key], release.md5[key], f"Fetch {ARCHIVES[key]} from image-net.org again")


def _require_space(archive: Path, folder: Path) -> None:
    # only before the first run: how much an interrupted one left to do is unknown
    needed, free = archive.stat().st_size, shutil.disk_usage(folder.parent).free
    if not folder.exists() and needed > free:
        raise FileWriteError(
            errno.ENOSPC,
            f"{folder} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; nothing was written",
        )


def _check_counts(
    counts: Counter[str], folder: Path, split: str, devkit: Devkit | None, release: Release, verify: bool
) -> None:
    problems = []
    if len(counts) != release.classes:
        problems.append(f"{len(counts):,} classes instead of {release.classes:,}")
    if counts.total() != release.images[split]:
        problems.append(f"{counts.total():,} images instead of {release.images[split]:,}")
    if devkit is not None:
        if extra := [wnid for wnid in counts if wnid not in devkit.train_images]:
            problems.append(f"folders that are no class: {abbreviate(extra)}")
        per_class = devkit.per_class(split).items()
        if wrong := [f"{k} {counts[k]:,} instead of {n:,}" for k, n in per_class if n is not None and counts[k] != n]:
            problems.append(f"in {len(wrong):,} classes another number of images: {abbreviate(wrong)}")
    if not problems:
        return
    message = f"{folder} is not the official {split} set: it has {'; '.join(problems)}"
    if verify:
        raise ValueError(
            f"{message}. Remove what does not belong there; the same command adds what is missing. Or say --no-verify if this "
            "is meant."
        )
    print(f"warning: {message}.")
