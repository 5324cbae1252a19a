"""SBD's labels to PNGs: two processes against one, and against mmsegmentation's ``voc_aug.py`` on the same files.

    python -m benchmarks.sbd                    # 1,000 masks, five rounds
    python -m benchmarks.sbd --full             # and one tools/prepare_voc.py of 11,355 labels, with its peak memory

The masks are drawn: blobs of one to three classes at SBD's sizes, with the fields of SBD's files, compressed. The conversions
take turns, each to an empty folder; the medians of the rounds are printed. mmsegmentation's script is the installed one, its
``convert_mat`` called as its ``main`` calls it.
"""

from __future__ import annotations

import argparse
import io
import platform
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from mmengine.utils import scandir, track_parallel_progress
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.sparse import csc_matrix

from gbseg.data.masks import read_mask, write_mask
from gbseg.data.prepare.sbd import convert_sbd
from gbseg.parallel import available_cores, run_in_processes

SHAPES = ((375, 500), (500, 375), (333, 500), (500, 334), (375, 500))


def _draw(job: tuple[Path, int]) -> None:
    """One file like those of SBD's ``cls`` folder."""
    path, seed = job
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    mask = np.zeros(shape, np.uint8)
    for label in rng.choice(np.arange(1, 21), rng.integers(1, 4), replace=False):
        # at a quarter of the size, then enlarged with jagged edges, as annotators' polygons are not smooth
        field = gaussian_filter(rng.normal(size=(shape[0] // 4 + 1, shape[1] // 4 + 1)), rng.uniform(4, 12))
        blob = np.kron(field / field.std(), np.ones((4, 4)))[: shape[0], : shape[1]]
        mask[blob + 0.05 * rng.normal(size=shape).cumsum(1) / 10 > rng.uniform(0.8, 1.6)] = label
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        area = mask == k + 1
        boundaries[k, 0] = csc_matrix(area & ~binary_erosion(area) if area.any() else area)
    present = np.array([[k] for k in np.unique(mask) if k], np.float64)
    struct = {"Segmentation": mask, "Boundaries": boundaries, "CategoriesPresent": present}
    savemat(path, {"GTcls": struct}, do_compression=True)


def _voc_aug() -> Callable[..., None]:
    """mmsegmentation's conversion of one file."""
    home = Path(find_spec("mmseg").origin).parent
    return runpy.run_path(str(home / ".mim/tools/dataset_converters/voc_aug.py"), run_name="voc_aug")["convert_mat"]


CONVERT_MAT = _voc_aug()


def _convert_mat(name: str, in_dir: str, out_dir: str) -> None:
    # a function that was made by runpy cannot be sent to another process
    CONVERT_MAT(name, in_dir, out_dir)


def _mmseg(sbd: Path, out: Path, processes: int) -> None:
    out.mkdir()
    work = partial(_convert_mat, in_dir=str(sbd / "cls"), out_dir=str(out))
    track_parallel_progress(work, list(scandir(str(sbd / "cls"), suffix=".mat")), nproc=processes, file=io.StringIO())


def _ours(sbd: Path, out: Path, processes: int) -> None:
    names = sorted(path.stem for path in (sbd / "cls").iterdir())
    done, failed = convert_sbd(sbd, names, out, processes)
    assert done == len(names) and not failed


def _full(drawn: list[Path], root: Path, processes: int) -> tuple[float, float]:
    """`tools/prepare_voc.py` on folders of the official lists' sizes; seconds, and the peak of its largest process in MiB.

    The drawn labels stand under all of SBD's ids (as links), one small image and one mask under all of VOC's.
    """
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    names = [f"2008_{n:06d}" for n in range(12031)]
    # SBD has 1,133 images of VOC train and 1,104 of val, as the official counts leave
    train, val, more = names[:1464], names[1464:2913], names[2913:]
    labelled = more + train[:1133] + val[:1104]
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets/Segmentation", sbd / "cls"):
        folder.mkdir(parents=True)
    lists = voc / "ImageSets/Segmentation"
    for path, ids in {
        lists / "train.txt": train,
        lists / "val.txt": val,
        sbd / "train.txt": labelled[:8498],
        sbd / "val.txt": labelled[8498:],
    }.items():
        path.write_text("".join(f"{name}\n" for name in ids))
    Image.new("RGB", (500, 375)).save(root / "image.jpg")
    write_mask(root / "mask.png", np.zeros((375, 500), np.uint8))
    for name in names:
        (voc / f"JPEGImages/{name}.jpg").hardlink_to(root / "image.jpg")
    for name in train + val:
        (voc / f"SegmentationClass/{name}.png").hardlink_to(root / "mask.png")
    for number, name in enumerate(labelled):
        (sbd / f"cls/{name}.mat").hardlink_to(drawn[number % len(drawn)])
    command = [sys.executable, "tools/prepare_voc.py", str(root), "--processes", str(processes)]
    # measured from a small process: one that is forked off a large one begins with its parent's peak
    watch = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    watch += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    began = time.perf_counter()
    peak = subprocess.run([sys.executable, "-c", watch, *command], stdout=subprocess.PIPE, check=True).stdout
    seconds = time.perf_counter() - began
    assert len(list((voc / "SegmentationClassAug").iterdir())) == 12031
    return seconds, float(peak)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--full", action="store_true", help="also one run of tools/prepare_voc.py at full size, with its memory"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    a = parser.parse_args()
    several = a.processes
    print(f"{platform.processor() or platform.machine()}, {available_cores()} cores, Python {platform.python_version()}")
    ways = {
        "1 process": partial(_ours, processes=1),
        f"{several} processes": partial(_ours, processes=several),
        "voc_aug.py, 1 process": partial(_mmseg, processes=1),
        f"voc_aug.py, {several} processes": partial(_mmseg, processes=several),
    }
    folder = Path(tempfile.mkdtemp(dir=a.folder))
    try:
        sbd = folder / "sbd"
        (sbd / "cls").mkdir(parents=True)
        run_in_processes(_draw, [(sbd / "cls" / f"2008_{n:06d}.mat", n) for n in range(a.masks)], "drawing")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(a.rounds + 1):
            for name, convert in ways.items():
                out = folder / "out"
                began = time.perf_counter()
                convert(sbd, out)
                # the first round warms the cache of files
                if turn:
                    times[name].append(time.perf_counter() - began)
                elif turn == 0:
                    out.rename(folder / name)
                    continue
                shutil.rmtree(out)
        for path in (folder / "1 process").iterdir():
            for name in ways:
                assert (read_mask(folder / name / path.name) == read_mask(path)).all(), (name, path.name)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{a.masks:,} masks, medians of {a.rounds} rounds:")
        for name, seconds in medians.items():
            print(f"  {name:<26}{seconds:8.2f} s  (from {min(times[name]):.2f} to {max(times[name]):.2f})")
        ours_single, ours_several, peer_single, peer_several = medians.values()
        print(f"  {several} processes are {ours_single / ours_several:.2f} times as fast as one")
        print(
            f"  voc_aug.py takes {peer_single / ours_single:.2f} times as long as ours on one, "
            f"{peer_several / ours_several:.2f} times on {several}"
        )
        if a.full:
            seconds, peak = _full(sorted((sbd / "cls").iterdir()), folder / "full", several)
            print(
                f"tools/prepare_voc.py with 11,355 labels of SBD, 9,118 of them to convert, and 2,913 masks of VOC, on "
                f"{several} processes: {seconds:.1f} s; its largest process peaked at {peak:.0f} MiB"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
