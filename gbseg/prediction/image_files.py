"""Prediction of image files: find the images, plan the output files, and predict all of them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gbseg.data.images import ImageError
from gbseg.data.masks import write_mask
from gbseg.files import write_atomically
from gbseg.palettes import VOC_PALETTE
from gbseg.prediction.jobs import Job, find_images, plan_outputs
from gbseg.prediction.segmenter import Segmenter
from gbseg.report.sheet import legend_below

__all__ = ["Job", "find_images", "plan_outputs", "predict_images"]


def predict_images(segmenter: Segmenter, jobs: Sequence[Job]) -> list[tuple[Path, ImageError]]:
    """Predict every image and write the files of its job, each atomically, with a progress bar.

    An image that cannot be read is reported and skipped.

    Returns:
        The images that failed, and why.

    Raises:
        gbseg.files.FileWriteError: a prediction could not be written; the remaining images are not predicted.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # as in testing: 256 colours, the classes' followed by VOC's
    palette = [*segmenter.palette, *VOC_PALETTE[len(segmenter.palette) :]][:256]
    failed = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for job in progress.track(jobs, description="predict"):
            try:
                result = segmenter(job.image, probabilities=job.probabilities is not None)
            except ImageError as error:
                failed.append((job.image, error))
                progress.console.print(escape(f"skipped: {error}"), highlight=False, soft_wrap=True)
                continue
            write_mask(job.labels, result.labels, palette)
            if job.overlay is not None:
                buffer = io.BytesIO()
                labels = np.unique(result.labels).tolist()
                picture = legend_below(result.overlay()[..., ::-1], labels, result.palette, result.class_names)
                Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(buffer, format="PNG")
                write_atomically(buffer.getbuffer(), job.overlay)
            if job.probabilities is not None:
                buffer = io.BytesIO()
                np.savez_compressed(buffer, probabilities=result.probabilities, classes=np.array(result.class_names))
                write_atomically(buffer.getbuffer(), job.probabilities)
    return failed
