"""Prepare VOC 2012 and SBD for training: download and unpack what is missing, convert masks, write lists."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG, VOC_LISTS
from gbseg.data.lists import abbreviate, build_lists, count_problems, list_bytes, read_ids
from gbseg.data.prepare.archives import finish_unpacking, unpack
from gbseg.data.prepare.download import download_file, require_md5
from gbseg.data.prepare.sbd import convert_sbd, find_sbd, is_complete_png
from gbseg.files import lock_folder, readable_os_errors, remove_temporary_files, sync_disks, write_atomically

__all__ = ["NOVAL", "SBD_ARCHIVE", "VOC_ARCHIVE", "Source", "find_voc", "prepare_voc"]


@dataclass(frozen=True)
class Source:
    """A file of the original hosts.

    Attributes:
        url: its URL there.
        md5: its MD5 in hexadecimal digits.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file name."""
        return self.url.rpartition("/")[2]

    def at(self, mirror: str | None) -> str:
        """The URL at a mirror, given as the file's URL or as a folder's that ends in a slash; for None the original URL."""
        if not mirror:
            return self.url
        return mirror + self.name if mirror.endswith("/") else mirror


#: VOC 2012 at its original host.
VOC_ARCHIVE = Source(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"
)
#: SBD at its original host.
SBD_ARCHIVE = Source(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
#: SBD's training list without the images of VOC's val list.
NOVAL = Source("http://home.bharathh.info/pubs/codes/SBD/train_noval.txt", "79bff800c5f0b1ec6b21080a3c066722")


def find_voc(root: str | Path) -> Path | None:
    """Find VOC 2012 as ``VOCdevkit/VOC2012``, as ``VOC2012`` or as the data folder itself; None if it is not complete."""
    for subfolder in ("VOCdevkit/VOC2012", "VOC2012", "."):
        folder = Path(root, subfolder)
        lists = [folder / LISTS / f"{name}.txt" for name in ("train", "val")]
        if all((folder / part).is_dir() for part in (IMAGES, MASKS)) and all(map(Path.is_file, lists)):
            return folder
    return None


def prepare_voc(
    root: str | Path,
    voc_tar: str | Path | None = None,
    sbd_tar: str | Path | None = None,
    mirrors: Mapping[str, str | None] | None = None,
    verify: bool = True,
    noval: bool = False,
    processes: int | None = None,
) -> Path:
    """Do what is missing: download, unpack, convert SBD's labels and write the lists. Prints what was done.

    Existing files are left as they are: the next run continues an interrupted one, and a second run changes nothing.

    Args:
        root: the data folder. VOC and SBD are looked for in it, unpacked or as archives, and are unpacked to it.
        voc_tar: VOC's archive, if it lies elsewhere.
        sbd_tar: SBD's archive, if it lies elsewhere.
        mirrors: URLs that replace the original ones, by 'voc', 'sbd' and 'noval' (see `Source.at`).
        verify: refuse archives with a wrong MD5 and lists with other counts than the official ones. If False, other counts are
            only warned of.
        noval: also write the list ``sbd_train_noval``, which is a separate download.
        processes: number of processes that convert labels, by default one per core.

    Returns:
        The folder of VOC 2012, with ``SegmentationClassAug/`` and all lists in ``ImageSets/Segmentation/``.

    Raises:
        ValueError: an archive, list or label is damaged or not the official one, or files are missing; the message names them
            and says what to do.
        OSError: a file could not be read or written.
        RuntimeError: a download failed, a worker was killed, or another process prepares this folder.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"the number of processes must be at least 1, not {processes}")
    mirrors = mirrors or {}
    root = Path(root)
    for archive in (voc_tar, sbd_tar):
        if archive is not None and not Path(archive).is_file():
            raise ValueError(f"there is no archive {archive}: without its option it is looked for in {root}, then downloaded.")
    with readable_os_errors(), lock_folder(root):
        finish_unpacking(root)
        voc = _find_or_unpack("VOC 2012", find_voc, root, voc_tar, VOC_ARCHIVE, mirrors.get("voc"), verify)
        sbd = _find_or_unpack("SBD", find_sbd, root, sbd_tar, SBD_ARCHIVE, mirrors.get("sbd"), verify)
        noval_list = None
        if noval:
            existing = (path for path in (root / NOVAL.name, sbd / NOVAL.name) if path.is_file())
            noval_list = next(existing, root / NOVAL.name)
            _require_file("SBD's train_noval", noval_list, NOVAL, mirrors.get("noval"), verify)
        lists = _build_lists(voc, sbd, noval_list, verify)
        _write_data_set(voc, sbd, lists, processes)
    _print_lists(lists)
    return voc


def _find_or_unpack(
    title: str,
    find: Callable[[Path], Path | None],
    root: Path,
    tar: str | Path | None,
    source: Source,
    mirror: str | None,
    verify: bool,
) -> Path:
    """The unpacked folder. If there is none, the archive is unpacked, and downloaded first if that is missing, too."""
    if (folder := find(root)) is not None:
        print(f"{title}: {folder} was there" + (f"; {tar} is not needed" if tar else ""))
        return folder
    archive = Path(tar) if tar else root / source.name
    _require_file(title, archive, source, mirror, verify)
    unpack(archive, root)
    if (folder := find(root)) is None:
        raise ValueError(f"{archive} was unpacked to {root}, and {title} is still not there: is it the right archive?")
    print(f"{title}: {folder}, unpacked from {archive}")
    return folder


def _require_file(title: str, path: Path, source: Source, mirror: str | None, verify: bool) -> None:
    """Download a file if it does not exist; refuse it if it is not the official one."""
    md5 = source.md5 if verify else None
    if not path.is_file():
        print(f"{title}: downloading {source.at(mirror)}")
        download_file(source.at(mirror), path, md5)
    elif md5:
        require_md5(path, md5)


def _build_lists(voc: Path, sbd: Path, noval: Path | None, verify: bool) -> dict[str, list[str]]:
    """Make and check all lists; writes nothing."""
    folder = voc / LISTS
    paths = [parent / f"{name}.txt" for parent in (folder, sbd) for name in ("train", "val")]
    lists = build_lists(*(read_ids(path) for path in [*paths, noval] if path is not None))
    problems = count_problems(lists)
    trainval = folder / "trainval.txt"
    if trainval.is_file() and sorted(read_ids(trainval)) != lists["trainval"]:
        problems.append(f"{trainval} is not train and val together")
    if problems and verify:
        raise ValueError(
            f"the lists are not the official ones: {'; '.join(problems)}. They come from {folder} and {sbd}: put the original "
            "files there, or say --no-verify if these are meant."
        )
    for problem in problems:
        print(f"warning: {problem}")
    return lists


def _write_data_set(voc: Path, sbd: Path, lists: Mapping[str, Sequence[str]], processes: int | None) -> None:
    """Take missing images from SBD, merge the masks of both into one folder, then write the lists."""
    masks, images, lists_folder = voc / MASKS_AUG, voc / IMAGES, voc / LISTS
    for folder in (masks, images, lists_folder):
        remove_temporary_files(folder)
    voc_ids = lists["trainval"]
    ids = sorted(set().union(*lists.values()))
    # an interrupted copy leaves files that are cut off; --verify decodes all
    remedy = "remove that folder and start again to unpack what it lacks (the rest stays as it is)."
    if absent := [name for name in voc_ids if not is_complete_png(voc / MASKS / f"{name}.png")]:
        raise ValueError(f"{voc / MASKS} lacks the masks of {_some_ids(absent)}, or has them in part: {remedy}")
    taken = [name for name in ids if not _has_bytes(images / f"{name}.jpg")]
    if absent := [name for name in taken if not _has_bytes(sbd / "img" / f"{name}.jpg")]:
        raise ValueError(f"neither {images} nor {sbd / 'img'} has the images of {_some_ids(absent)}: for the first, {remedy}")
    for name in taken:
        write_atomically((sbd / "img" / f"{name}.jpg").read_bytes(), images / f"{name}.jpg", durable=False)
    copied = 0
    for name in voc_ids:
        # VOC's masks replace SBD's, also those that another tool made
        data, mask = (voc / MASKS / f"{name}.png").read_bytes(), masks / f"{name}.png"
        if not mask.is_file() or mask.read_bytes() != data:
            write_atomically(data, mask, durable=False)
            copied += 1
    sbd_ids = sorted(set(ids) - set(voc_ids))
    converted, failed = convert_sbd(sbd, sbd_ids, masks, processes)
    if failed:
        reasons = "; ".join([str(error) for _, error in failed[:3]] + ["..."] * (len(failed) > 3))
        raise ValueError(
            f"{len(failed):,} of {len(sbd_ids):,} labels of SBD could not be converted: {reasons}. Put the original files "
            f"there, or remove {sbd / 'cls'} to unpack it anew, and start again; the others are done."
        )
    # lists come last, when the files that they name are on the disk
    if converted or copied or taken:
        sync_disks()
    written = _write_lists(lists_folder, lists)
    sources = f"{len(voc_ids):,} of VOC ({copied:,} copied now), {len(sbd_ids):,} of SBD ({converted:,} converted now)"
    print(f"masks: {masks}: {sources}")
    print(f"images: {images}: {len(ids):,}" + (f" ({len(taken):,} taken from SBD now)" if taken else ""))
    print(f"lists: {lists_folder}: {written or 'none'} written now")


def _write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> int:
    """Write the lists that are missing or different, and keep what they replace; returns how many."""
    written = 0
    for name, ids in lists.items():
        path, data = folder / f"{name}.txt", list_bytes(ids)
        if path.is_file():
            # VOC's own lists stay as they are, whatever their order and line ends
            if name in VOC_LISTS or path.read_bytes() == data:
                continue
            backups = (folder / f"{name}.txt.old{number}" for number in itertools.count(1))
            old = next(backup for backup in backups if not backup.exists())
            write_atomically(path.read_bytes(), old)
            print(f"warning: {path} was another list, now at {old}")
        write_atomically(data, path)
        written += 1
    return written


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _some_ids(ids: Sequence[str]) -> str:
    return f"{len(ids):,} ids ({abbreviate(ids, 10)})"


def _print_lists(lists: Mapping[str, Sequence[str]]) -> None:
    print(f"\n{'list':<16}{'ids':>8}{'of them in VOC val':>20}")
    val = set(lists["val"])
    for name, ids in lists.items():
        print(f"{name:<16}{len(ids):>8,}{len(val.intersection(ids)):>20,}")
    print("Never report the mIoU on VOC val of a model that was trained on a list which shares images with it.")
