"""``--submit``: predict a test set without labels, and pack the predictions for VOC's evaluation server."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS, DefaultScope
from PIL import ExifTags

from gbseg.data.images import open_image
from gbseg.data.lists import read_ids
from gbseg.evaluation.submission_archive import MEMBER_FOLDER, pack_submission
from gbseg.files import visible_entries
from gbseg.mm.config import inner_test_dataset, without_annotations
from gbseg.palettes import VOC_CLASSES

__all__ = ["TEST_LIST", "Submission", "prepare_submission"]

TEST_LIST = "ImageSets/Segmentation/test.txt"
"""The list of VOC's test images, below ``data_root``."""


@dataclass(frozen=True)
class Submission:
    """The predictions to pack: PNGs in ``folder``, one for each of ``ids``."""

    archive: Path
    folder: Path
    ids: tuple[str, ...]
    images: tuple[Path, ...]
    temporary: bool

    def clear(self) -> None:
        """Remove the predictions of an earlier run, which would be packed as well; every process calls it."""
        if is_main_process():
            if self.temporary:
                shutil.rmtree(self.folder, ignore_errors=True)
            for name in self.ids:
                (self.folder / f"{name}.png").unlink(missing_ok=True)
        barrier()

    def pack(self) -> None:
        """Check and pack the predictions when all processes have written theirs.

        Raises:
            gbseg.evaluation.submission_archive.SubmissionError: they are no valid submission; nothing is packed or removed.
        """
        barrier()
        if not is_main_process():
            return
        sizes = {}
        for name, path in zip(self.ids, self.images, strict=True):
            with open_image(path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by 90 degrees, and predicted upright
                sizes[name] = (image.width, image.height) if turned else (image.height, image.width)
        pack_submission(self.folder, self.ids, sizes, self.archive, len(VOC_CLASSES))
        print(f"{len(self.ids)} predictions are packed in {self.archive}, as {MEMBER_FOLDER}/<id>.png")
        if self.temporary:
            shutil.rmtree(self.folder)


def prepare_submission(
    config: Config, archive: Path | str, ids: str | None, out: Path | str | None, work_dir: Path
) -> Submission:
    """Set a config's test set to a list without labels, in place.

    The list is ``ids``; by default the config's own if its test pipeline loads no annotations, otherwise `TEST_LIST`.
    Annotations are not loaded, and the evaluator only writes PNGs.

    Args:
        config: config of one run.
        archive: the ``.tgz`` to write.
        ids: a file with ids, below the data set's ``data_root``.
        out: the folder of the PNGs; None for one below ``work_dir`` that is removed after packing.
        work_dir: folder of the run.

    Raises:
        FileNotFoundError: there is no such list, or an image of it is missing; the message says where to get them.
        ValueError: the archive's name does not end in .tgz or .tar.gz, the list has no ids or invalid ones, ``out`` holds other
            files, or the test set does not have VOC's classes.
    """
    archive = Path(archive)
    if not archive.name.endswith((".tgz", ".tar.gz")):
        raise ValueError(f"--submit writes a gzipped tar archive: give it a name like results.tgz, not {archive.name}.")
    dataset = inner_test_dataset(config)
    loads_labels = "Annotation" in str(dataset.pipeline)
    dataset.pipeline = without_annotations(dataset.pipeline)
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
        metainfo = getattr(DATASETS.get(dataset.type), "METAINFO", {}) | dict(dataset.get("metainfo") or {})
    classes = metainfo.get("classes", ())
    if tuple(classes) != VOC_CLASSES:
        raise ValueError(
            f"VOC's server scores VOC's {len(VOC_CLASSES)} classes; the config's test set has {', '.join(classes)}."
        )
    root = Path(dataset.get("data_root") or "")
    ann_file = ids or (TEST_LIST if loads_labels or not dataset.get("ann_file") else dataset.ann_file)
    source = (
        "VOC's test images and their list come from its evaluation server, http://host.robots.ox.ac.uk:8080, for users with an "
        f"account: unpack the test archive so that {root / 'JPEGImages'} and {root / TEST_LIST} are there. "
        "Another list: --submit-list."
    )
    if not (root / ann_file).is_file():
        raise FileNotFoundError(f"there is no list {root / ann_file}. {source}")
    names = tuple(read_ids(root / ann_file))
    folder = root / dataset.data_prefix.img_path
    images = tuple(folder / f"{name}{dataset.get('img_suffix', '.jpg')}" for name in names)
    if missing := [path for path in images if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(images)} images of {ann_file} are missing, first {missing[0]}. {source}"
        )
    png_folder = Path(out) if out is not None else work_dir / "submission"
    if out is not None and png_folder.is_dir():
        expected = {f"{name}.png" for name in names}
        if extra := [path.name for path in visible_entries(png_folder) if path.name not in expected]:
            raise ValueError(
                f"{png_folder} holds {len(extra)} file(s) that are not of {ann_file}, first {extra[0]}: name an empty folder."
            )
    dataset.ann_file = str(ann_file)
    dataset.data_prefix.pop("seg_map_path", None)
    config.test_evaluator = dict(type="VOCMetric", format_only=True, out_dir=str(png_folder))
    return Submission(archive, png_folder, names, images, temporary=out is None)
