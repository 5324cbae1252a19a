"""MMSegmentation's heads in two processes have the gradient of one, once the hook has switched ``sync_divisor`` on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_tiny import SERVER
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from gbseg.mm import BroadcastBuffersHook, SyncDivisorHook

LOSS = {"type": "ExpGBLoss", "alpha": 0.1, "targets": (0, 16), "loss_weight": 1 / 16}
HEAD: dict[str, Any] = {
    "type": "FCNHead",
    "in_channels": 6,
    "in_index": 1,
    "channels": 8,
    "num_convs": 1,
    "concat_input": False,
    "dropout_ratio": 0.0,
    "num_classes": 4,
    "loss_decode": [LOSS, {"type": "SoftmaxLoss", "class_weight": [1, 2, 0.5, 1], "class_weight_mode": "labels"}],
}
HEADS = {
    "fcn": HEAD,
    # it chooses among the images of a process; here it takes all of them
    "ohem": {**HEAD, "sampler": {"type": "OHEMPixelSampler", "min_kept": 3072}},
    "pixelnet": {
        "type": "PixelNetHead",
        "in_channels": (3, 6),
        "strides": (1, 2),
        "num_classes": 4,
        "hidden": (8,),
        "dropout": 0.0,
        "sampler": {"type": "UniformPixelSampler", "num": 3072},
        "loss_decode": LOSS,
    },
}


def _model(head: str) -> nn.Module:
    torch.manual_seed(0)
    auxiliary = {**HEAD, "in_channels": 3, "in_index": 0, "loss_decode": {"type": "Pow3GBLoss", "loss_weight": 0.4}}
    config = {
        "type": "EncoderDecoder" if head != "pixelnet" else "PixelNet",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {"type": "VGG16Trunk", "width": 0.05, "taps": ("conv1_2", "conv2_2")},
        "decode_head": HEADS[head],
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    if head != "pixelnet":
        config["auxiliary_head"] = auxiliary
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double()  # type: ignore[no-any-return]


def _batch() -> tuple[Tensor, list[SegDataSample]]:
    rng = torch.Generator().manual_seed(0)
    samples = []
    for labelled in (16, 3072):
        label = torch.randint(0, 4, (1, 48, 64), generator=rng)
        label.view(-1)[labelled:] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label), metainfo={"img_shape": (48, 64)}))
    return torch.randn(2, 3, 48, 64, generator=rng, dtype=torch.float64), samples


def _gradients(model: nn.Module, images: slice, call: Any) -> dict[str, Tensor]:
    inputs, samples = _batch()
    model.train().zero_grad()
    losses = call(inputs[images], samples[images], mode="loss")
    sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
    return {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}


def _one_of_two(folder: Path, rank: int) -> None:
    with Path(folder, f"out{rank}.txt").open("w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        results = {}
        for head in HEADS:
            for switch in (True, False):
                plain = _model(head)
                if not switch:
                    for module in plain.modules():
                        if hasattr(module, "sync_divisor"):
                            module.sync_divisor = False
                model = MMDistributedDataParallel(plain, broadcast_buffers=False, find_unused_parameters=True)
                said: list[str] = []
                runner = SimpleNamespace(model=model, logger=SimpleNamespace(info=said.append))
                SyncDivisorHook().before_train(runner)
                results[head, switch] = _gradients(model, slice(rank, rank + 1), model), said
        # the buffers that a checkpoint has, and no others
        network = nn.Module()
        network.register_buffer("mean", torch.tensor([1.0 + rank]))
        network.register_buffer("own", torch.tensor([1.0 + rank]), persistent=False)
        BroadcastBuffersHook().before_val_epoch(SimpleNamespace(model=network))
        results["buffers"] = network.mean, network.own
        torch.save(results, folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_heads(tmp_path: Path) -> None:
    """Decode heads, auxiliary heads, several losses, OHEM and sampled pixels; a config's False stays.

    Without ``SyncDivisorHook.before_train``: the gradients differ from those of one process by a fifth and more.
    """
    processes = [SERVER.Process(target=_one_of_two, args=(tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0, (tmp_path / "out0.txt").read_text() + (tmp_path / "out1.txt").read_text()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for head in HEADS:
            model = _model(head)
            expected = _gradients(model, slice(None), model)
            found, said = results[head, True]
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{head}: {name}")
            assert len(said) == 1 and "decode_head.loss_decode" in said[0] and "over all 2 processes" in said[0]
            found, said = results[head, False]
            assert not said
            if head == "fcn":
                # others choose as many pixels of each image
                assert max(float((found[name] - g).norm() / g.norm()) for name, g in expected.items() if g.any()) > 0.2
        mean, own = results["buffers"]
        assert mean == 1 and own == 1 + rank


def test_one_process() -> None:
    """Nothing is switched on, and nothing said."""
    model = _model("fcn")
    SyncDivisorHook().before_train(SimpleNamespace(model=model))
    assert {module.sync_divisor for module in model.modules() if hasattr(module, "sync_divisor")} == {None}
