"""The archive that PASCAL VOC's evaluation server accepts. All predictions are checked before anything is packed."""

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gbseg.data.images import open_image
from gbseg.data.masks import MaskError, read_mask
from gbseg.files import visible_entries, write_atomically

__all__ = ["MEMBER_FOLDER", "SubmissionError", "check_submission", "pack_submission"]

MEMBER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the server expects ``<id>.png``: competition 6, segmentation with any training data but the test set."""


class SubmissionError(ValueError):
    """The predictions are not a valid submission.

    Attributes:
        problems: (id or file name, problem), in the order of the list.
        folder: where the predictions are.
    """

    def __init__(self, problems: Sequence[tuple[str, str]], folder: str | Path) -> None:
        self.problems, self.folder = list(problems), folder
        width = max(len(name) for name, _ in self.problems)
        lines = [f"  {name:<{width}}  {problem}" for name, problem in self.problems]
        head = f"no archive was written: {len(self.problems)} problem(s) with the predictions in {folder}:"
        super().__init__("\n".join([head, *lines]))

    def __reduce__(self) -> tuple:
        # an exception is otherwise pickled with its message as the only argument
        return type(self), (self.problems, self.folder)


def check_submission(
    folder: str | Path, ids: Sequence[str], sizes: Mapping[str, tuple[int, int]], num_classes: int = 21
) -> list[tuple[str, str]]:
    """All problems of a folder of predictions, as (id or file name, problem).

    Problems are: an id that is twice in the list; an id without ``<id>.png``; any other file in the folder; a PNG that is
    unreadable or not indexed, has another size than its image, or has a value that is not a class (255, "void", included).

    Args:
        folder: of the PNGs.
        ids: the list of the test set.
        sizes: (height, width) of every id's image.
        num_classes: C; values must be below it.
    """
    folder = Path(folder)
    counts = Counter(ids)
    problems = [(name, f"is {count} times in the list") for name, count in counts.items() if count > 1]
    for name in counts:
        path = folder / f"{name}.png"
        if not path.is_file():
            problems.append((name, "is missing"))
        elif problem := _problem_of(path, sizes[name], num_classes):
            problems.append((name, problem))
    expected = {f"{name}.png" for name in counts}
    if folder.is_dir():
        extra = [path.name for path in visible_entries(folder) if path.name not in expected]
        problems += [(name, "is not in the list: remove it") for name in extra]
    return problems


def _problem_of(path: Path, size: tuple[int, int], num_classes: int) -> str | None:
    try:
        values = read_mask(path)
    except MaskError as error:
        return str(error)
    with open_image(path) as image:
        if image.mode != "P":
            return "is a grey PNG; the server takes indexed ones (with a palette), as --submit and --out write them"
    if values.shape != tuple(size):
        (height, width), (image_height, image_width) = values.shape, size
        return f"is {width} x {height} pixels (width x height), its image {image_width} x {image_height}"
    wrong = np.unique(values[values >= num_classes])
    return f"holds the values {wrong[:10].tolist()}; classes are 0..{num_classes - 1}" if wrong.size else None


def pack_submission(
    folder: str | Path,
    ids: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    archive: str | Path,
    num_classes: int = 21,
) -> None:
    """Check predictions and pack them into an archive, atomically. The same predictions give the same bytes.

    Args:
        folder: of the PNGs.
        ids: the list of the test set.
        sizes: (height, width) of every id's image.
        archive: the ``.tgz`` to write.
        num_classes: C; values must be below it.

    Raises:
        SubmissionError: `check_submission` lists a problem; nothing is written.
        gbseg.files.FileWriteError: the archive could not be written.
    """
    if problems := check_submission(folder, ids, sizes, num_classes):
        raise SubmissionError(problems, folder)
    buffer = io.BytesIO()
    # no file name, time or owner: the archive depends on the predictions alone
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in sorted(ids):
            data = (Path(folder) / f"{name}.png").read_bytes()
            member = tarfile.TarInfo(f"{MEMBER_FOLDER}/{name}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_atomically(buffer.getbuffer(), archive)
