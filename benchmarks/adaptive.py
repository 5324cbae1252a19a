"""What adaptive prediction saves and what it costs in mIoU: ``python -m benchmarks.adaptive CONFIG CHECKPOINT``.

Every image of the config's test set goes through the trunk once; then the head predicts it densely and adaptively in every
setting, by the segmentor's own code, and `VOCMetric` scores each. For some of the images the whole thing is timed at PixelNet's
full widths as well: an untrained head of 5568-4096-4096 evaluates exactly the points that the trained network asked for.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from benchmarks.table import Settings, by_contender, facts, write_table
from benchmarks.timing import Measured, measure
from gbseg.mm import load_config
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.checkpoint_weights import load_weights
from gbseg.mm.models import PixelNet, PixelNetHead
from gbseg.mm.voc_metric import VOCMetric
from gbseg.report.curve import COLOURS, DPI, STYLE, WIDTH

# of (coarse, margin), and what `PixelNetHead.adaptive` takes where nothing is said
DENSE, STANDARD = (1, 0.0), (8, 0.2)
CHANNELS, STRIDES = (64, 128, 256, 512, 512, 4096), (1, 2, 4, 8, 16, 32)


class Trained:
    """A trained PixelNet whose trunk runs once an image, and which says how many pixels its head evaluated."""

    def __init__(self, config: Path, checkpoint: Path) -> None:
        self.config = load_config(config)
        init_default_scope(self.config.get("default_scope", "mmseg"))
        self.network: PixelNet = MODELS.build(self.config.model).eval()
        stored = read_checkpoint(checkpoint)
        load_weights(self.network, stored, checkpoint)
        self.meta = stored["meta"]["dataset_meta"]
        self.extract = self.network.extract_feat
        self.seen = torch.zeros(0)
        self.features: list[Tensor] = []

    def batches(self) -> Sequence[dict]:
        """Of one image each."""
        settings = self.config.test_dataloader
        settings.update(batch_size=1, num_workers=0, persistent_workers=False)
        return Runner.build_dataloader(settings, seed=0)

    def adaptive(self, features: Sequence[Tensor], size: tuple[int, int], **options: float) -> tuple[Tensor, Tensor]:
        """`PixelNetHead.adaptive`, remembered."""
        logits, self.seen = PixelNetHead.adaptive(self.network.decode_head, features, size, **options)
        return logits, self.seen

    def predict(self, batch: dict, settings: Sequence[tuple[int, float]]) -> list[tuple[list, float, float]]:
        """Samples, share of the pixels that were evaluated, and seconds of the head, for each (coarse, margin)."""
        data = self.network.data_preprocessor(batch, False)
        self.features = []

        trunk = 0.0

        def extract_once(inputs: Tensor) -> list[Tensor]:
            nonlocal trunk
            start = time.perf_counter()
            self.features = self.features or self.extract(inputs)
            trunk = time.perf_counter() - start
            return self.features

        predictions = []
        self.network.extract_feat = extract_once
        self.network.decode_head.adaptive = self.adaptive
        for coarse, margin in [DENSE, *settings]:
            mode = dict(mode="adaptive", coarse=coarse, margin=margin) if (coarse, margin) != DENSE else dict(mode="whole")
            self.network.test_cfg = ConfigDict(self.config.model.test_cfg | mode)
            samples = [sample.clone() for sample in data["data_samples"]]
            start = time.perf_counter()
            samples = self.network.predict(data["inputs"], samples)
            seconds = time.perf_counter() - start - trunk
            share = 1.0 if mode["mode"] == "whole" else float(self.seen.double().mean())
            predictions.append((samples, share, seconds))
        return predictions

    def logits(self, batch: dict) -> Tensor:
        """(C, H, W) at the network's input size."""
        self.predict(batch, [])
        return self.network.decode_head(self.features, self.network.input_size)[0]


class Answered(PixelNetHead):
    """A head that computes what it is asked for, and gives another's logits (C, H, W) as its answer: its own are untrained."""

    answers: Tensor

    def _evaluate(self, levels: Sequence, points: Tensor, weight: Tensor) -> Tensor:
        super()._evaluate(levels, points, weight)
        return self.answers[:, points[:, 0], points[:, 1]].T


def at_full_width(logits: Tensor, options: dict[str, float], rounds: int) -> tuple[dict[str, Measured], float]:
    """PixelNet at its own widths on one image: trunk, dense head, and adaptive head.

    The last evaluates the points that logits (C, H, W) of a trained network ask for. Returns the times, and the share of the
    pixels that were evaluated.
    """
    torch.manual_seed(0)
    size = tuple(logits.shape[1:])
    trunk = MODELS.build(dict(type="VGG16Trunk", taps=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7"))).eval()
    head = Answered(CHANNELS, len(logits), strides=STRIDES).eval()
    head.init_weights()
    head.answers = logits
    image = torch.randn(1, 3, *size)
    features = trunk(image)
    times = measure(
        {
            "trunk": lambda: trunk(image),
            "head, dense": lambda: head(features, size),
            "head, adaptive": lambda: head.adaptive(features, size, **options),
        },
        rounds,
    )
    return times, float(head.adaptive(features, size, **options)[1].double().mean())


def draw(rows: Sequence[dict], path: Path) -> None:
    """The change of the mIoU against how many evaluations fewer, a line for each first grid."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for number, coarse in enumerate(sorted({row["coarse"] for row in rows} - {1})):
            line = [row for row in rows if row["coarse"] == coarse]
            x, y = [row["fewer_evaluations"] for row in line], [-row["mIoU_lost"] for row in line]
            axes.plot(
                x, y, color=COLOURS[number], marker="o", markersize=4, linewidth=1.2, label=f"first grid: {coarse} pixels apart"
            )
            for row, *position in zip(line, x, y, strict=True):
                axes.annotate(f"{row['margin']:g}", position, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.axhline(0, color="#808080", linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlabel("times fewer MLP evaluations than dense prediction (numbers: margin)")
        axes.set_ylabel("mIoU - that of dense, points")
        axes.legend(frameon=False)
        figure.savefig(path)


def main() -> None:
    """Measure, print the table, write it and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--coarse", type=int, nargs="+", default=(4, 8, 16, 32))
    parser.add_argument("--margin", type=float, nargs="+", default=(0.0, 0.1, 0.2, 0.4))
    parser.add_argument("--images", type=int, help="the first so many only")
    parser.add_argument("--rounds", type=int, default=10, help="of the times at full width")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="what else the machine did, for the result")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = facts(
        f"python -m benchmarks.adaptive {arguments.config} <checkpoint>", Settings(rounds=arguments.rounds), arguments.note
    )
    settings = list(product(arguments.coarse, arguments.margin))
    trained = Trained(arguments.config, arguments.checkpoint)
    metrics = [VOCMetric(headline=trained.config.headline) for _ in [DENSE, *settings]]
    shares: list[list[float]] = [[] for _ in metrics]
    seconds: list[list[float]] = [[] for _ in metrics]
    standard = 1 + settings.index(STANDARD) if STANDARD in settings else 1
    for number, batch in enumerate(trained.batches()):
        if number == arguments.images:
            break
        for metric, share, second, prediction in zip(metrics, shares, seconds, trained.predict(batch, settings), strict=True):
            metric.dataset_meta = trained.meta
            metric.process(batch, [sample.to_dict() for sample in prediction[0]])
            share.append(prediction[1])
            second.append(prediction[2])
    rows: list[dict] = []
    for metric, share, second, (coarse, margin) in zip(metrics, shares, seconds, [DENSE, *settings], strict=True):
        scores_by_name = metric.evaluate(len(share))
        rate = statistics.fmean(share)
        row = dict(coarse=coarse, margin=margin, evaluated_percent=100 * rate, fewer_evaluations=1 / rate)
        scores = {name: scores_by_name[name] for name in (f"mIoU-{len(trained.config.headline)}", "mIoU")}
        lost = rows[0]["mIoU"] - scores_by_name["mIoU"] if rows else 0.0
        rows.append(row | scores | dict(mIoU_lost=lost, head_ms=1e3 * statistics.median(second)))
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    # the image whose share is the set's median
    middle = sorted(range(len(shares[standard])), key=shares[standard].__getitem__)[len(shares[standard]) // 2]
    logits = trained.logits(next(islice(iter(trained.batches()), middle, None)))
    times, share = at_full_width(logits, dict(zip(("coarse", "margin"), settings[standard - 1], strict=True)), arguments.rounds)
    wide = by_contender("full widths", "x".join(map(str, logits.shape)), times, "head, dense")
    arguments.out.mkdir(parents=True, exist_ok=True)
    about |= dict(images=len(shares[0]), checkpoint=arguments.checkpoint.name, evaluated_percent_at_full_width=100 * share)
    write_table(arguments.out / "adaptive_head.csv", wide, about)
    with (arguments.out / "adaptive.csv").open("w", newline="") as file:
        file.write(f"# {json.dumps(about)}\n")
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 4) for name, value in row.items()} for row in rows)
    draw(rows, arguments.out / "adaptive.png")
    print(*wide, f"{100 * share:.1f} % of the pixels were evaluated. The tables are in {arguments.out}", sep="\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
