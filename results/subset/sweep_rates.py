"""The rates of configs/subset: five for every loss, on the train list alone.

    OMP_NUM_THREADS=1 uv run python results/subset/sweep_rates.py > results/subset/rate_sweep.csv

A short stand-in for the whole training: hypercolumns of the frozen trunk at 500 pixels of each image are computed once, and the
head of configs/subset/_base_.py is trained on them for 300 iterations of 20 images x 100 pixels with each rate (warm-up,
momentum, decay, clip norm as in the configs; bfloat16). 64 images of the train list are held out and give the score; val is
never looked at. Seed 0, one trial.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from gbseg.data.voc import VOC_CLASSES
from gbseg.engine.config import load_config
from gbseg.pixelnet.gather import gather
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import Tensor

from gbseg.evaluation import confusion_matrix, scores
from gbseg.pixelnet import PixelNetHead, UniformPixelSampler

RATES = {
    "softmax": (0.01, 0.03, 0.1, 0.3, 1.0),
    "expgb": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "pow3gb": (0.0003, 0.001, 0.003, 0.01, 0.03),
}
CONFIGS = Path(__file__).parents[2] / "configs/subset"


def hypercolumns(model: ConfigDict, root: Path) -> tuple[Tensor, Tensor]:
    """(images, 500, K) hypercolumns and (images, 500) labels of the train list."""
    torch.manual_seed(0)
    trunk = MODELS.build(model.backbone)
    trunk.init_weights()
    trunk.eval()
    head = MODELS.build(model.decode_head)
    sampler = UniformPixelSampler(500)
    columns, labels = [], []
    for name in (root / "ImageSets/Segmentation/train.txt").read_text().split():
        image = cv2.resize(cv2.imread(str(root / f"JPEGImages/{name}.jpg")), (224, 224))
        with Image.open(root / f"SegmentationClass/{name}.png") as mask:
            label = torch.from_numpy(np.array(mask.resize((224, 224), Image.Resampling.NEAREST))).long()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = trunk(torch.from_numpy(image).permute(2, 0, 1)[None].float())
            points, label = sampler(label[None], 21)
            levels = zip(head.levels(features, (224, 224)), head.tap_scale, strict=True)
            columns.append(torch.cat([gather(level, points) * scale for level, scale in levels], -1)[0].bfloat16())
        labels.append(label[0])
    return torch.stack(columns), torch.stack(labels)


def classify(head: PixelNetHead, x: Tensor) -> Tensor:
    """The head's MLP on hypercolumns (rows, K)."""
    with torch.autocast("cpu", torch.bfloat16):
        x = head.linears[0](x)
        for linear, norm in zip(head.linears[1:], head.norms, strict=True):
            x = linear(head.dropout(torch.relu(norm(x))))
    return x.float()


def trial(settings: ConfigDict, rate: float, clip: float, columns: Tensor, labels: Tensor) -> list[float]:
    """mIoU-7 after 100, 200 and 300 iterations and mIoU-21 after 300, in percent; empty from where the loss diverged."""
    order = torch.randperm(len(columns), generator=torch.Generator().manual_seed(1))
    held_out, train = order[:64], order[64:]
    torch.manual_seed(0)
    head = MODELS.build(settings)
    head.init_weights()
    weights = [p for name, p in head.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in head.named_parameters() if name.endswith("bias")]
    groups = [dict(params=weights, weight_decay=5e-4), dict(params=biases, weight_decay=0.0)]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    found: list[float] = []
    for iteration in range(1, 301):
        for group, factor in zip(optimizer.param_groups, (1, 2), strict=True):
            group["lr"] = factor * rate * min(1.0, iteration / 50)
        batch, pixels = train[torch.randint(len(train), (20,))], torch.randperm(500)[:100]
        x, label = columns[batch][:, pixels].flatten(0, 1), labels[batch][:, pixels].flatten()
        loss = head.loss_decode[0](classify(head, x), label, ignore_index=255)
        if not bool(torch.isfinite(loss)):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), clip)
        optimizer.step()
        if iteration % 100 == 0:
            head.eval()
            with torch.no_grad():
                predicted = torch.stack([classify(head, columns[k][::2]).argmax(1) for k in held_out])
            head.train()
            matrix = confusion_matrix(predicted, labels[held_out][:, ::2], 21)
            result = scores(matrix, VOC_CLASSES, ("background", "cat", "cow", "dog", "horse", "person", "sheep"))
            found.append(100 * result.headline_miou)
            if iteration == 300:
                found.append(100 * result.miou)
    return found


def main() -> None:
    """Sweep, and write a CSV to standard output as it goes."""
    init_default_scope("mmseg")
    configs = {name: load_config(CONFIGS / f"{name}.py") for name in RATES}
    columns, labels = hypercolumns(configs["expgb"].model, Path(configs["expgb"].data_root))
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["loss", "rate", "clip_norm", "mIoU-7 after 100", "after 200", "after 300", "mIoU-21 after 300"])
    for name, rates in RATES.items():
        clip = configs[name].optim_wrapper.clip_grad.max_norm
        for rate in rates:
            found = trial(configs[name].model.decode_head, rate, clip, columns, labels)
            out.writerow([name, rate, clip, *(f"{value:.1f}" for value in found)])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
