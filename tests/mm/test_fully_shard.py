"""FSDP2: two gloo processes train a PixelNet and a SegFormer as DistributedDataParallel does, and checkpoint by DCP."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from engine_tiny import SERVER
from mmengine.config import Config
from PIL import Image

from gbseg.mm.config import load_config

ROOT = Path(__file__).parents[2]
MAX_ITERS = 6
SEGFORMER = dict(
    _delete_=True,
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=1, pad_val=0, seg_pad_val=255, mean=[99.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type="MixVisionTransformer",
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[8, 8, 16, 16],
        in_index=[0, 1, 2, 3],
        channels=9,
        dropout_ratio=0.0,
        num_classes=21,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16)),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)


def _config(root: Path, kind: str, **options: Any) -> Config:
    """Nothing in it is random, and the images of both processes have as many labelled pixels: all runs must be equal."""
    config = load_config(ROOT / "configs/demo_expgb.py")
    for key in ("runs", "compare", "prepare"):
        config.pop(key)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        config[loader].dataset.data_root = str(root / "voc")
    config.train_dataloader.batch_size = 2
    config.train_dataloader.dataset.pipeline = [step for step in config.train_pipeline if step.type[0] in "LP"]
    config.val_dataloader.dataset.ann_file = "ImageSets/Segmentation/train.txt"
    config.model.backbone.update(width=0.05, batch_norm=False)
    config.model.decode_head.update(in_channels=(3, 6, 13, 26, 26), hidden=(8, 7), dropout=0.0, norm=None, sampler=None)
    if kind == "segformer":
        config.merge_from_dict(dict(model=SEGFORMER))
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.optim_wrapper.update(clip_grad=dict(max_norm=0.5))
    config.param_scheduler = [dict(type="LinearLR", start_factor=0.1, begin=0, end=MAX_ITERS, by_epoch=False)]
    config.train_cfg.update(max_iters=MAX_ITERS, val_interval=3)
    config.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=2, save_best="mIoU", rule="greater")
    config.merge_from_dict(options)
    return config


def _train(root: Path, name: str, rank: int, world: int, stop_at: int | None, resume: bool, **options: Any) -> None:
    """One of ``world`` processes; ``stop_at``: each dies after this iteration, with no chance to do anything."""
    from mmengine.hooks import Hook

    from gbseg.mm import training

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    if world > 1 or "model_wrapper_cfg" in options:
        torch.distributed.init_process_group("gloo", init_method=f"file://{root}/{name}.meet", rank=rank, world_size=world)
    # most of a short run's time: one asks compilers for their versions, the other lays out the config's text
    mmengine.runner.runner.collect_env = dict
    Config.pretty_text = property(lambda self: "\n".join(f"{key} = {value!r}" for key, value in self.items()))
    config = _config(root, **options)

    class Die(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            if runner.iter + 1 == stop_at:
                os._exit(7)

    build = training.build_runner

    def build_runner(*args: Any, **kwargs: Any) -> Any:
        runner = build(*args, **kwargs)
        runner.register_hook(Die())
        return runner

    training.build_runner = build_runner
    with (root / f"{name}.{rank}.txt").open("a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        try:
            training.train(config, root / name, resume=resume, launcher="pytorch" if torch.distributed.is_initialized() else "none")
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _run(
    root: Path, name: str, world: int = 2, stop_at: int | None = None, resume: bool = False, code: int = 0, **options: Any
) -> str:
    (root / f"{name}.meet").unlink(missing_ok=True)
    arguments = [(root, name, rank, world, stop_at, resume) for rank in range(world)]
    processes = [SERVER.Process(target=_train, args=these, kwargs=options) for these in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    output = "".join((root / f"{name}.{rank}.txt").read_text() for rank in range(world))
    assert [process.exitcode for process in processes] == [code] * world, output
    return output


SHARDED = dict(model_wrapper_cfg=dict(type="FullyShard"))
BLOCKS = dict(model_wrapper_cfg=dict(type="FullyShard", modules=["TransformerEncoderLayer", "decode_head"]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    names = [f"i{number}" for number in range(8)]
    random = np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / "voc" / part).mkdir(parents=True)
    for name in names:
        label = np.kron(random.integers(0, 21, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        image = np.stack([label * 12, 255 - label * 12, label * 7], -1).astype(np.uint8)
        Image.fromarray(image).save(folder / f"voc/JPEGImages/{name}.jpg", quality=95)
        Image.fromarray(label).save(folder / f"voc/SegmentationClass/{name}.png")
    (folder / "voc/ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    return folder


def test_try(root: Path) -> None:
    from gbseg.mm.checkpoint_loading import read_checkpoint

    from time import time
    t = time()
    one = _run(root, "one", world=1, kind="pixelnet", **{"train_dataloader.batch_size": 4})
    print("TIME", time() - t)
    ddp = _run(root, "ddp", kind="pixelnet")
    print("TIME", time() - t)
    out = _run(root, "fsdp", kind="pixelnet", **SHARDED)
    print("TIME", time() - t)
    print(out[-3000:])
    print(sorted(p.name for p in (root / "fsdp").iterdir()))
    a, b, c = (read_checkpoint(root / n) for n in ("one/iter_6.pth", "ddp/iter_6.pth", "fsdp/iter_6"))
    print(c.keys(), c["optimizer"].keys())
    for k, v in a["state_dict"].items():
        print(k, (v - b["state_dict"][k]).abs().max().item(), (v - c["state_dict"][k]).abs().max().item(), v.abs().max().item())
