"""How many files a reader meets who follows one training step of PixelNet."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import gbseg

PACKAGE = Path(gbseg.__file__).parent


@pytest.fixture(scope="module")
def entered() -> set[str]:
    """The files of gbseg in which a function is called during a training step, after a first step."""
    torch.manual_seed(0)
    config = dict(
        type="PixelNet",
        data_preprocessor=dict(type="SegDataPreProcessor", size=(32, 32), pad_val=0, seg_pad_val=255),
        backbone=dict(type="VGG16Trunk", taps=["conv1_2", "conv3_3", "fc7"], width=1 / 64),
        decode_head=dict(
            type="PixelNetHead",
            in_channels=(1, 4, 64),
            num_classes=3,
            strides=(1, 4, 32),
            hidden=(8, 8),
            sampler=dict(type="UniformPixelSampler", num=20),
            loss_decode=dict(type="ExpGBLoss"),
        ),
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config).train()
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-3))
    label = PixelData(data=torch.randint(3, (1, 32, 32)))
    batch = dict(
        inputs=[torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(2)],
        data_samples=[SegDataSample(gt_sem_seg=label) for _ in range(2)],
    )
    model.train_step(batch, optimizer)
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and path.name != "__init__.py":
            files.add(path.relative_to(PACKAGE).as_posix())

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        model.train_step(batch, optimizer)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return files


def test_the_networks_own(entered: set[str]) -> None:
    """Trunk, head, sampling and hypercolumns."""
    network = {name for name in entered if not name.startswith("losses/")}
    assert "mm/models/pixelnet_head.py" in network
    assert len(network) <= 5, sorted(network)


def test_with_the_losses(entered: set[str]) -> None:
    assert any(name.startswith("losses/") for name in entered)
    assert len(entered) <= 9, sorted(entered)
