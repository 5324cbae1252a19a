"""Fuzzing: mutated images, masks, checkpoints, configs and archives through the readers that users meet.

    python tests/fuzz/run.py                  # all parts, some five minutes on two cores
    python tests/fuzz/run.py --times 20       # the same parts with twenty times as many cases
    python tests/fuzz/run.py --only masks --case 17

A case is right where a mutant that must be accepted has the values of the original, and where any other is refused in a
sentence that names the file. Wrong are: another error, a value of a changed label, code that ran, a hang, and memory that
grows by more than a gigabyte. Every case depends on (seed, part, number) alone. ``--write`` puts the table of counts into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import multiprocessing
import os
import pickle
import random
import re
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
# each worker has a core of its own
os.environ["OMP_NUM_THREADS"] = "1"

import mutations  # noqa: E402  (found by the path above)

PAGE = ROOT / "docs/reliability.md"
SECONDS = 60
"""A case that takes longer is a hang."""
GIGABYTE = 2**20
"""In the unit of ``ru_maxrss``."""


class Result(NamedTuple):
    """How one case ended.

    Attributes:
        kind: what was done to the file.
        reader: who read it.
        outcome: 'accepted', 'refused', or what is wrong.
        message: the refusal, or the traceback of what is wrong.
    """

    kind: str
    reader: str
    outcome: str
    message: str = ""


Case = Callable[[random.Random], Result]


def judge(mutant: mutations.Mutant, reader: str, name: str, read: Callable[[], bool]) -> Result:
    """Run a reader on a mutant.

    Args:
        mutant: the file.
        reader: the reader's name.
        name: what a refusal must contain: the file's name.
        read: reads it; whether the values are those of the original.
    """
    from gbseg.errors import is_refusal

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            same = read()
    except Exception as error:
        if not is_refusal(error):
            return Result(mutant.kind, reader, "no sentence", traceback.format_exc())
        if name not in str(error):
            return Result(mutant.kind, reader, "no file named", str(error))
        return Result(mutant.kind, reader, "valid, but refused" if mutant.right == "same" else "refused", str(error))
    if mutant.right == "refuse":
        return Result(mutant.kind, reader, "wrong, but accepted")
    if not same and mutant.right != "any":
        return Result(mutant.kind, reader, "other values")
    return Result(mutant.kind, reader, "accepted")


def tiny_config(folder: Path) -> dict:
    """The settings of a small PixelNet on generated scenes, that trains one iteration."""
    from gbseg.mm import load_config

    config = load_config("gbseg::demo_expgb.py")
    pipeline = [transform for transform in config.train_pipeline if transform["type"] not in ("RandomFlip", "ChannelGain")]
    config.merge_from_dict(
        {
            "work_dir": str(folder / "work"),
            "prepare": {"root": str(folder / "data"), "train": 2, "val": 1, "size": (64, 80)},
            "model.backbone.width": 0.0625,
            "model.decode_head.in_channels": (4, 8, 16, 32, 32),
            "model.decode_head.hidden": (8, 8),
            "model.decode_head.sampler.num": 50,
            "train_cfg.max_iters": 1,
            "train_cfg.val_interval": 1,
            "train_dataloader.batch_size": 2,
            "param_scheduler": [{"type": "PolyLR", "power": 1.0, "end": 1, "by_epoch": False}],
            "default_hooks.checkpoint.interval": 1,
            "visualizer.vis_backends": [{"type": "LocalVisBackend"}],
        }
    )
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        config[loader].dataset.data_root = str(folder / "data")
    config.train_dataloader.dataset.pipeline = pipeline
    for name in ("runs", "compare", "train_pipeline", "folders", "size", "data_root"):
        config.pop(name, None)
    return config.to_dict()


def trained(folder: Path) -> tuple[Path, Path]:
    """Train the tiny config; returns its file and the checkpoint."""
    from gbseg.mm import load_config, train

    file = folder / "tiny.py"
    settings = tiny_config(folder)
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(load_config(file))
    return file, folder / "work" / "iter_1.pth"


def pictures(folder: Path, masks: bool) -> Case:
    """Images or masks through the data set of a training, a validation, and a prediction."""
    import numpy as np
    from PIL import Image

    from gbseg.mm import SampleCheckHook, load_config
    from gbseg.mm.training import build_runner
    from gbseg.prediction.segmenter import Segmenter

    file, checkpoint = trained(folder)
    config = load_config(file)
    # the training reads the image that the validation reads
    config.train_dataloader.dataset.ann_file = config.val_dataloader.dataset.ann_file
    config.train_dataloader.update(batch_size=1, num_workers=0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        runner = build_runner(config, folder / "fuzz", load_from=str(checkpoint))
        runner.load_or_resume()
        train_set = runner.train_loop.dataloader.dataset
        for hook in runner.hooks:
            if isinstance(hook, SampleCheckHook):
                hook.before_train(runner)
                hook.before_val(runner)
        clean = runner.val_loop.run()
    [name] = (folder / "data/ImageSets/Segmentation/val.txt").read_text().split()
    image, mask = folder / f"data/JPEGImages/{name}.jpg", folder / f"data/SegmentationClass/{name}.png"
    segmenter = Segmenter(file, checkpoint, "cpu")
    target = mask if masks else image
    stored = target.read_bytes()
    with Image.open(target) as picture:
        values = np.array(picture)

    def train() -> bool:
        sample = train_set[0]["data_samples"]
        return bool((sample.gt_sem_seg.data.squeeze(0).numpy() == values).all()) if masks else True

    def evaluate() -> bool:
        scores = runner.val_loop.run()
        return all(np.array_equal(scores[key], clean[key], equal_nan=True) for key in clean) if masks else True

    def predict() -> bool:
        return segmenter(target).labels.size > 0

    readers = (
        {"training": train, "evaluation": evaluate} if masks else dict(training=train, evaluation=evaluate, prediction=predict)
    )

    def case(rng: random.Random) -> Result:
        mutant = (mutations.mask if masks else mutations.image)(rng, values, stored)
        reader = rng.choice(list(readers))
        # the writer of the mutant must not reach the original, and no reader may keep the last file
        target.write_bytes(mutant.data)
        return judge(mutant, reader, target.name, readers[reader])

    return case


def checkpoints(folder: Path) -> Case:
    """Checkpoints through `gbseg.Segmenter`, ``load_from`` and ``resume``."""
    import torch

    from gbseg.mm import load_config
    from gbseg.mm.training import build_runner
    from gbseg.prediction.segmenter import Segmenter

    file, checkpoint = trained(folder)
    stored = checkpoint.read_bytes()
    marker, target = folder / "code-was-run", folder / "mutant.pth"
    weights = Segmenter(file, checkpoint, "cpu").network.state_dict()

    def same(network: torch.nn.Module) -> bool:
        state = network.state_dict()
        return all(torch.equal(state[name], value) for name, value in weights.items())

    def segment() -> bool:
        return same(Segmenter(file, target, "cpu").network)

    def fine_tune() -> bool:
        runner = build_runner(load_config(file), folder / "fuzz", load_from=str(target))
        runner.load_or_resume()
        return same(runner.model)

    def resume() -> bool:
        runner = build_runner(load_config(file), folder / "fuzz", load_from=str(target), resume=True)
        runner.call_hook("before_run")
        runner.load_or_resume()
        return same(runner.model)

    readers = {"Segmenter": segment, "load_from": fine_tune, "resume": resume}

    def case(rng: random.Random) -> Result:
        mutant = mutations.checkpoint(rng, stored, marker)
        target.write_bytes(mutant.data)
        reader = rng.choice(list(readers))
        if reader != "Segmenter" and mutant.right == "refuse" and mutant.kind in ("a tensor less", "another shape"):
            # what fits is loaded, with a warning
            mutant.right = "any"
        result = judge(mutant, reader, target.name, readers[reader])
        if marker.exists():
            marker.unlink()
            return result._replace(outcome="code was run")
        return result

    return case


def configs(folder: Path) -> Case:
    """Configs through the commands ``train`` and ``doctor``."""
    from gbseg.cli import main

    trained(folder)
    settings = tiny_config(folder)
    pickle.dumps(settings)
    target = folder / "mutant.py"

    def case(rng: random.Random) -> Result:
        mutant = mutations.config(rng, settings)
        target.write_bytes(mutant.data)
        command = rng.choice(["train", "doctor"])
        argv = [command, str(target), *(["--work-dir", str(folder / "fuzz")] if command == "train" else [])]
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = main(argv)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            return Result(mutant.kind, command, "no sentence", mutant.data.decode() + traceback.format_exc())
        if "Traceback" in said.getvalue():
            return Result(mutant.kind, command, "no sentence", mutant.data.decode() + said.getvalue())
        if not status and mutant.right == "refuse":
            return Result(mutant.kind, command, "wrong, but accepted", mutant.data.decode())
        return Result(mutant.kind, command, "refused" if status else "accepted", said.getvalue()[-300:])

    return case


def archives(folder: Path) -> Case:
    """Tar archives through `gbseg.data.prepare.archives.unpack`, and MATLAB files through SBD's reader."""
    import shutil

    import numpy as np

    from gbseg.data.prepare.archives import unpack
    from gbseg.data.prepare.sbd import read_segmentation

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 21, (60, 80)).astype(np.uint8)
    outside = Path("/tmp/outside")
    outside.unlink(missing_ok=True)
    files = {"data/a.txt": generator.bytes(3000), "data/inner/b.txt": b"b" * 5000, "data/c": b""}

    def case(rng: random.Random) -> Result:
        if rng.random() < 0.5:
            mutant = mutations.mat(rng, labels)
            target = folder / "mutant.mat"
            target.write_bytes(mutant.data)
            return judge(mutant, "SBD's labels", target.name, lambda: np.array_equal(read_segmentation(target), labels))
        mutant = mutations.archive(rng, files)
        target, out = folder / "mutant.tar", folder / "inside" / "out"
        target.write_bytes(mutant.data)
        shutil.rmtree(out.parent, ignore_errors=True)
        out.mkdir(parents=True)

        def read() -> bool:
            unpack(target, out)
            return all((out / name).read_bytes() == data for name, data in files.items())

        result = judge(mutant, "unpack", target.name, read)
        if sorted(path.name for path in out.parent.iterdir()) != ["out"] or outside.exists():
            return result._replace(outcome="written outside")
        if result.outcome == "refused" and list(out.iterdir()):
            return result._replace(outcome="refused, but in part there")
        return result

    return case


PARTS: dict[str, tuple[int, Callable[[Path], Case]]] = {
    "images": (500, lambda folder: pictures(folder, masks=False)),
    "masks": (500, lambda folder: pictures(folder, masks=True)),
    "checkpoints": (150, checkpoints),
    "configs": (150, configs),
    "archives": (200, archives),
}
"""Part -> the number of its cases, and what makes a function of one case, with a folder of its own."""
RIGHT = ("accepted", "refused")


def work(part: str, seed: int, numbers: range, results: Connection, home: Path, log: Path) -> None:
    """Run cases of one part in this process, and send the number and the result of each.

    Args:
        part: of `PARTS`.
        seed: of all cases.
        numbers: of the cases.
        results: where they are sent to, after None when all is ready for the first.
        home: an empty folder is made in it.
        log: gets what is written to standard error, of which libjpeg's share is large, and where a case hangs.
    """
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)
        folder = tempfile.mkdtemp(dir=home)
        os.chdir(folder)
        case = PARTS[part][1](Path(folder))
        results.send(None)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            result = case(random.Random(f"{seed} {part} {number}"))
            faulthandler.cancel_dump_traceback_later()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if peak - memory > GIGABYTE:
                result = result._replace(outcome="a gigabyte of memory")
            memory = peak
            results.send((number, result))


def run_part(part: str, seed: int, numbers: range, home: Path) -> list[tuple[int, Result]]:
    """Run cases in processes of their own; one that dies or hangs is a result, and the rest goes on."""
    context = multiprocessing.get_context("fork")
    done: list[tuple[int, Result]] = []
    log = home / "stderr.txt"

    def start(rest: range) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(part, seed, rest, sender, home, log))
        process.start()
        sender.close()
        running[receiver] = (process, rest, False)

    running: dict[Connection, tuple] = {}
    for half in (numbers[0::2], numbers[1::2]):
        if half:
            start(half)
    while running:
        for receiver in multiprocessing.connection.wait(list(running)):
            process, rest, ready = running[receiver]
            try:
                if (result := receiver.recv()) is not None:
                    done.append(result)
                    rest = rest[1:]
                running[receiver] = (process, rest, True)
                continue
            except EOFError:
                process.join()
            del running[receiver]
            if rest:
                text = f"exit status {process.exitcode}; the end of what it wrote:\n{log.read_text()[-3000:]}"
                done.append((rest[0], Result("?", "?", "hung or died" if ready else "died before its first case", text)))
                if rest[1:] and ready:
                    start(rest[1:])
    return sorted(done)


def table(results: dict[str, list[tuple[int, Result]]]) -> str:
    """The counts, as the Markdown table of the page."""
    lines = [
        "| part | reader | cases | accepted | refused in a sentence | wrong |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for part, cases in results.items():
        for reader in sorted({result.reader for _, result in cases}):
            counts = Counter(result.outcome for _, result in cases if result.reader == reader)
            wrong = sum(count for outcome, count in counts.items() if outcome not in RIGHT)
            lines.append(f"| {part} | {reader} | {counts.total()} | {counts['accepted']} | {counts['refused']} | {wrong} |")
    return "\n".join(lines)


def main() -> int:
    """Run the parts; the exit status is 1 if a case was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=1.0, help="so many times the usual number of cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--case", type=int, help="one case of --only, with all that it says")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    parts = {arguments.only: PARTS[arguments.only]} if arguments.only else PARTS
    # once, before the processes are forked
    import gbseg.cli
    import gbseg.mm
    import gbseg.prediction.segmenter  # noqa: F401

    results = {}
    for part, (count, _) in parts.items():
        numbers = range(max(1, round(count * arguments.times)))
        if arguments.case is not None:
            numbers = range(arguments.case, arguments.case + 1)
        with tempfile.TemporaryDirectory(prefix="gbseg-fuzz-") as home:
            results[part] = run_part(part, arguments.seed, numbers, Path(home))
        for number, result in results[part]:
            if result.outcome not in RIGHT or arguments.case is not None:
                print(f"{part}, case {number}: {result.kind}, {result.reader}: {result.outcome}\n{result.message}\n")
        print(f"{part}: {Counter(result.outcome for _, result in results[part])}", flush=True)
    text = table(results)
    print(text)
    if arguments.write:
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"(?s)(<!-- fuzzing -->\n).*?(\n<!-- end -->)", lambda m: m[1] + text + m[2], page))
    return int(any(result.outcome not in RIGHT for cases in results.values() for _, result in cases))


if __name__ == "__main__":
    sys.exit(main())
