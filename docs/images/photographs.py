"""Draw ``photographs.jpg``: three free photographs, and what PixelNet says with exp-GB and with the softmax.

    pip install --target build/photographs scikit-image          # carries two of the three photographs
    python docs/images/photographs.py build/photographs

Needs ``data/VOCdevkit/VOC2012`` with the lists of the subset that configs/subset describes, and its VGG-16 weights.
What is trained is the head of ``configs/subset/{expgb,softmax}.py`` on the frozen trunk: hypercolumns of ``PIXELS`` random
pixels of each training image are computed once, and both heads see the same batches of them. The rates are the best of five
for each loss, found the same way on training images (results/subset/rate_sweep.csv). Weights and cache go to
``work_dirs/photographs``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import Tensor, nn

import gbseg.mm  # noqa: F401  (registers what the configs name)
from gbseg import Segmenter
from gbseg.mm.config import load_config
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE
from gbseg.pixelnet.hypercolumn import hypercolumns_reference

ROOT = Path(__file__).parents[2]
WORK_DIR = Path("work_dirs/photographs")
PIXELS, ITERATIONS, WARM_UP, IMAGES_PER_BATCH, PIXELS_PER_IMAGE = 500, 300, 50, 20, 100
RATES = {"expgb": 0.003, "softmax": 0.3}
TITLES = {"expgb": "exp-GB", "softmax": "softmax"}


def sampled_hypercolumns(model: nn.Module, root: Path) -> tuple[Tensor, Tensor]:
    """(images, pixels, channels) scaled hypercolumns and (images, pixels) labels of the train list."""
    cache = WORK_DIR / "hypercolumns.pt"
    if cache.exists():
        return torch.load(cache, weights_only=True)
    torch.manual_seed(0)
    head, columns, labels = model.decode_head, [], []
    scale = torch.tensor(head.tap_scale).repeat_interleave(torch.tensor(head.in_channels))
    for name in (root / "ImageSets/Segmentation/train.txt").read_text().split():
        image = cv2.resize(cv2.imread(str(root / f"JPEGImages/{name}.jpg")), (224, 224))
        with Image.open(root / f"SegmentationClass/{name}.png") as mask:
            label = torch.from_numpy(np.array(mask.resize((224, 224), Image.Resampling.NEAREST))).long()
        with torch.no_grad():
            features = model.backbone(torch.from_numpy(image).permute(2, 0, 1)[None].float())
            position = torch.randperm(224 * 224)[:PIXELS]
            points = torch.stack((position // 224, position % 224), dim=1)[None]
            columns.append((hypercolumns_reference(head.levels(features, (224, 224)), points)[0] * scale).half())
        labels.append(label.flatten()[position])
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save((torch.stack(columns), torch.stack(labels)), cache)
    return torch.load(cache, weights_only=True)


def train_head(name: str, config: Config, columns: Tensor, labels: Tensor) -> Path:
    """Train a head on hypercolumns; returns the checkpoint of the whole network."""
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    head = model.decode_head
    weights = [p for key, p in head.named_parameters() if key.endswith("weight")]
    biases = [p for key, p in head.named_parameters() if key.endswith("bias")]
    groups = [dict(params=weights, weight_decay=5e-4), dict(params=biases, weight_decay=0.0)]
    optimizer = torch.optim.SGD(groups, lr=RATES[name], momentum=0.9)
    batches = torch.Generator().manual_seed(1)
    for iteration in range(1, ITERATIONS + 1):
        for group, factor in zip(optimizer.param_groups, (1, 2), strict=True):
            group["lr"] = factor * RATES[name] * min(1.0, iteration / WARM_UP)
        images = torch.randint(len(columns), (IMAGES_PER_BATCH,), generator=batches)
        pixels = torch.randperm(PIXELS, generator=batches)[:PIXELS_PER_IMAGE]
        x = head.linears[0](columns[images][:, pixels].flatten(0, 1).float())
        for linear, norm in zip(head.linears[1:], head.norms, strict=True):
            x = linear(head.dropout(torch.relu(norm(x))))
        loss = head.loss_decode[0](x, labels[images][:, pixels].flatten(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), config.optim_wrapper.clip_grad.max_norm)
        optimizer.step()
        if iteration % 100 == 0:
            print(f"{name} {iteration}: {loss.item():.4f}", flush=True)
    checkpoint = WORK_DIR / f"{name}.pth"
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    return checkpoint


def main(packages: Path) -> None:
    """Train what is not trained yet, predict and draw."""
    start = time.process_time()
    init_default_scope("mmseg")
    configs = {name: load_config(ROOT / f"configs/subset/{name}.py") for name in RATES}
    model = MODELS.build(configs["expgb"].model)
    model.init_weights()
    columns, labels = sampled_hypercolumns(model.eval(), Path(configs["expgb"].data_root))
    print(f"hypercolumns: {time.process_time() - start:.0f} s of CPU time", flush=True)
    photographs = [
        packages / "skimage/data/chelsea.png",
        packages / "skimage/data/astronaut.png",
        Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    ]
    results = []
    for name, config in configs.items():
        checkpoint = WORK_DIR / f"{name}.pth"
        if not checkpoint.exists():
            train_head(name, config, columns, labels)
        print(f"{name}: {time.process_time() - start:.0f} s of CPU time", flush=True)
        segmenter = Segmenter(ROOT / f"configs/subset/{name}.py", checkpoint, device="cpu")
        results.append([segmenter(photograph) for photograph in photographs])
    images = [np.asarray(Image.open(photograph).convert("RGB")) for photograph in photographs]
    shown = sorted({int(label) for row in results for result in row for label in np.unique(result.labels)} - {0})
    figure = Figure(figsize=(7, 7.3), layout="constrained")
    axes = figure.subplots(3, 3)
    for column, (title, row) in enumerate([("image", images), *zip(TITLES.values(), results, strict=True)]):
        axes[0, column].set_title(title)
        for axis, picture in zip(axes[:, column], row, strict=True):
            # a square of the middle: the photographs have different shapes
            pixels = picture if column == 0 else picture.overlay()
            side = min(pixels.shape[:2])
            top, left = (pixels.shape[0] - side) // 4, (pixels.shape[1] - side) // 2
            axis.imshow(pixels[top : top + side, left : left + side])
            axis.set_axis_off()
    colours = [Patch(color=np.array(VOC_PALETTE[label]) / 255, label=VOC_CLASSES[label]) for label in shown]
    figure.legend(handles=colours, loc="outside lower center", ncols=min(7, len(colours)), frameon=False)
    figure.savefig(Path(__file__).with_name("photographs.jpg"), dpi=90, pil_kwargs=dict(quality=85))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
