"""VOC 2012 and SBD, from whatever of them is there to folders, masks and lists that can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG, VOC_LISTS
from gbseg.data.lists import build_lists, count_problems, list_bytes, read_ids
from gbseg.data.prepare.archives import finish_unpacking, unpack
from gbseg.data.prepare.download import download, require_md5
from gbseg.data.prepare.sbd import convert_sbd, find_sbd, is_whole_png
from gbseg.files import lock_folder, readable_os_errors, remove_temporary_files, sync_disks, write_atomically

__all__ = ["NOVAL", "SBD_ARCHIVE", "VOC_ARCHIVE", "Source", "find_voc", "prepare_voc"]


@dataclass(frozen=True)
class Source:
    """A file of the original hosts: where it lies there and its MD5."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]

    def at(self, mirror: str | None) -> str:
        """Its URL, or that at a mirror: the file's URL, or a folder's that ends in a slash."""
        if not mirror:
            return self.url
        return mirror + self.name if mirror.endswith("/") else mirror


VOC_ARCHIVE = Source(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"
)
SBD_ARCHIVE = Source(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
NOVAL = Source("http://home.bharathh.info/pubs/codes/SBD/train_noval.txt", "79bff800c5f0b1ec6b21080a3c066722")


def find_voc(root: str | Path) -> Path | None:
    """The folder of VOC 2012 in, at or below a data folder (``VOCdevkit/VOC2012``, ``VOC2012``); None where it is not whole."""
    for place in ("VOCdevkit/VOC2012", "VOC2012", "."):
        folder = Path(root, place)
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
    """Do whatever is missing: download, unpack, convert SBD's labels, write the lists; say what was done.

    What is there is left as it is, so that an interrupted run is continued by the next, and a second run changes nothing.

    Args:
        root: the data folder: VOC and SBD are looked for in it, unpacked or as archives, and unpacked to it.
        voc_tar: VOC's archive, where it lies elsewhere.
        sbd_tar: SBD's.
        mirrors: URLs in place of the original ones, by 'voc', 'sbd', 'noval' (see `Source.at`).
        verify: refuse an archive with a wrong MD5, and lists whose counts differ from the official ones. Otherwise the counts
            are only warned of.
        noval: the list ``sbd_train_noval`` too, which is a file of its own to download.
        processes: that convert; None for as many as there are cores.

    Returns:
        The folder of VOC 2012, with ``SegmentationClassAug/`` and all lists in ``ImageSets/Segmentation/``.

    Raises:
        ValueError: an archive, a list or a label is not what it should be, or files are missing; says which and what to do.
        OSError: a file could not be read or written.
        RuntimeError: a download failed, a process was killed, or another one prepares this folder.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"the number of processes must be at least 1, not {processes}")
    mirrors = mirrors or {}
    root = Path(root)
    for archive in (voc_tar, sbd_tar):
        if archive is not None and not Path(archive).is_file():
            raise ValueError(f"there is no archive {archive}: without its option it is looked for in {root}, then downloaded.")
    with readable_os_errors():
        root.mkdir(parents=True, exist_ok=True)
        with lock_folder(root):
            finish_unpacking(root)
            voc = _found("VOC 2012", find_voc, root, voc_tar, VOC_ARCHIVE, mirrors.get("voc"), verify)
            sbd = _found("SBD", find_sbd, root, sbd_tar, SBD_ARCHIVE, mirrors.get("sbd"), verify)
            noval_list = _noval(root, sbd, mirrors.get("noval"), verify) if noval else None
            lists = _lists(voc, sbd, noval_list, verify)
            _prepare(voc, sbd, lists, processes)
    _report(voc, lists)
    return voc


def _found(
    title: str,
    find: Callable[[Path], Path | None],
    root: Path,
    given: str | Path | None,
    source: Source,
    mirror: str | None,
    verify: bool,
) -> Path:
    """The unpacked folder; unpacked from an archive, downloaded first, as far as that is needed."""
    if (folder := find(root)) is not None:
        print(f"{title}: {folder} was there" + (f"; {given} is not needed" if given else ""))
        return folder
    archive = Path(given) if given else root / source.name
    md5 = source.md5 if verify else None
    if not archive.is_file():
        url = source.at(mirror)
        print(f"{title}: downloading {url}")
        download(url, archive, md5)
    elif md5:
        require_md5(archive, md5)
    unpack(archive, root)
    if (folder := find(root)) is None:
        raise ValueError(f"{archive} was unpacked to {root}, and {title} is still not there: is it the right archive?")
    print(f"{title}: {folder}, unpacked from {archive}")
    return folder


def _noval(root: Path, sbd: Path, mirror: str | None, verify: bool) -> Path:
    md5 = NOVAL.md5 if verify else None
    for path in (root / NOVAL.name, sbd / NOVAL.name):
        if path.is_file():
            if md5:
                require_md5(path, md5)
            return path
    print(f"SBD's train_noval: downloading {NOVAL.at(mirror)}")
    download(NOVAL.at(mirror), root / NOVAL.name, md5)
    return root / NOVAL.name


def _lists(voc: Path, sbd: Path, noval: Path | None, verify: bool) -> dict[str, list[str]]:
    """All lists, checked, and nothing written yet."""
    folder = voc / LISTS
    lists = build_lists(
        read_ids(folder / "train.txt"),
        read_ids(folder / "val.txt"),
        read_ids(sbd / "train.txt"),
        read_ids(sbd / "val.txt"),
        read_ids(noval) if noval else None,
    )
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


def _prepare(voc: Path, sbd: Path, lists: Mapping[str, Sequence[str]], processes: int | None) -> None:
    masks, images, sets = voc / MASKS_AUG, voc / IMAGES, voc / LISTS
    for folder in (masks, images, sets):
        remove_temporary_files(folder)
    own = lists["trainval"]
    ids = sorted(set().union(*lists.values()))
    # an interrupted copy leaves files that are cut; --verify decodes every one
    again = "remove that folder and start again to unpack what it lacks (the rest stays as it is)."
    if absent := [name for name in own if not is_whole_png(voc / MASKS / f"{name}.png")]:
        raise ValueError(f"{voc / MASKS} lacks the masks of {_some(absent)}, or has them in part: {again}")
    taken = [name for name in ids if not _has_bytes(images / f"{name}.jpg")]
    if absent := [name for name in taken if not _has_bytes(sbd / "img" / f"{name}.jpg")]:
        raise ValueError(f"neither {images} nor {sbd / 'img'} has the images of {_some(absent)}: for the first, {again}")
    for name in taken:
        write_atomically((sbd / "img" / f"{name}.jpg").read_bytes(), images / f"{name}.jpg", durable=False)
    copied = 0
    for name in own:
        # VOC's own masks win, also over those that another tool made of SBD's
        data, mask = (voc / MASKS / f"{name}.png").read_bytes(), masks / f"{name}.png"
        if not mask.is_file() or mask.read_bytes() != data:
            write_atomically(data, mask, durable=False)
            copied += 1
    rest = sorted(set(ids) - set(own))
    converted, failed = convert_sbd(sbd, rest, masks, processes)
    if failed:
        reasons = "; ".join([str(error) for _, error in failed[:3]] + ["..."] * (len(failed) > 3))
        raise ValueError(
            f"{len(failed):,} of {len(rest):,} labels of SBD could not be converted: {reasons}. Put the original files "
            f"there, or remove {sbd / 'cls'} to unpack it anew, and start again; the others are done."
        )
    # lists come last, and only once the files that they name are on the disk
    if converted or copied or taken:
        sync_disks()
    written = _write_lists(sets, lists)
    print(f"masks: {masks}: {len(own):,} of VOC ({copied:,} copied now), {len(rest):,} of SBD ({converted:,} converted now)")
    print(f"images: {images}: {len(ids):,}" + (f" ({len(taken):,} taken from SBD now)" if taken else ""))
    print(f"lists: {sets}: {written or 'none'} written now")


def _write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> int:
    written = 0
    for name, ids in lists.items():
        path, data = folder / f"{name}.txt", list_bytes(ids)
        if path.is_file():
            # VOC's own are never written, whatever their order or line ends
            if name in VOC_LISTS or path.read_bytes() == data:
                continue
            old = next(p for n in range(1, 1000) if not (p := folder / f"{name}.txt.old{n}").exists())
            write_atomically(path.read_bytes(), old)
            print(f"warning: {path} was another list, now at {old}")
        write_atomically(data, path)
        written += 1
    return written


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _some(names: Sequence[str]) -> str:
    return f"{len(names):,} ids ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"


def _report(voc: Path, lists: Mapping[str, Sequence[str]]) -> None:
    print(f"\n{'list':<16}{'ids':>8}{'of them in VOC val':>20}")
    val = set(lists["val"])
    for name, ids in lists.items():
        print(f"{name:<16}{len(ids):>8,}{len(val.intersection(ids)):>20,}")
    print("Never report the mIoU on VOC val of a model that was trained on a list which shares images with it.")
