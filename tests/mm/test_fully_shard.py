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
from engine_tiny import SERVER, differences
from mmengine.config import Config
from PIL import Image
from torch.distributed.tensor import DTensor

from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.config import load_config

ROOT = Path(__file__).parents[2]
MAX_ITERS = 6
SEGFORMER = dict(
    _delete_=True,
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", size_divisor=1, pad_val=0, seg_pad_val=255, mean=[99.0] * 3, std=[60.0] * 3
    ),
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
    config.model.decode_head.update(in_channels=(3, 6, 13, 26, 26), hidden=(8, 7), dropout=0.0, norm=None)
    config.model.decode_head.sampler = dict(type="UniformPixelSampler", num=32 * 32)
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
            training.train(
                config, root / name, resume=resume, launcher="pytorch" if torch.distributed.is_initialized() else "none"
            )
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


def _weights(path: Path) -> dict[str, Any]:
    return read_checkpoint(path)["state_dict"]


def _assert_close(actual: Path, expected: Path, tolerance: float) -> None:
    ours, theirs = _weights(actual), _weights(expected)
    assert ours.keys() == theirs.keys() and not any(isinstance(value, DTensor) for value in ours.values())
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """The same PixelNet by one process with the whole batch, by DistributedDataParallel and by FSDP2."""
    _run(root, "one", world=1, kind="pixelnet", **{"train_dataloader.batch_size": 4})
    _run(root, "ddp", kind="pixelnet")
    _run(root, "fsdp", kind="pixelnet", **SHARDED)
    return root


@pytest.mark.slow
def test_pixelnet(trained: Path) -> None:
    """FSDP2 gives the weights of one process and of DistributedDataParallel.

    Without `ShardedRunner`: ``Runner.save_checkpoint`` writes the first process's part of the parameters. Without the early
    weights of `wrap_model`: mmengine gives each process's part other ones, and dies broadcasting them.
    """
    _assert_close(trained / "fsdp/iter_6", trained / "ddp/iter_6.pth", 1e-5)
    _assert_close(trained / "fsdp/iter_6", trained / "one/iter_6.pth", 1e-4)
    start, end = _weights(trained / "fsdp/iter_4"), _weights(trained / "fsdp/iter_6")
    assert max(float((end[name] - start[name]).abs().max()) for name in end) > 1e-3, "nothing was learnt"
    # folders of the last two, the best as an ordinary file, as with any other run
    names = {path.name for path in (trained / "fsdp").iterdir() if path.name.startswith(("iter", "best", "."))}
    best = {path.name for path in (trained / "ddp").glob("best_*")}
    assert names == {"iter_4", "iter_6"} | best and len(best) == 1
    _assert_close(trained / "fsdp" / min(best), trained / "ddp" / min(best), 1e-5)
    ours, theirs = (read_checkpoint(trained / name) for name in ("fsdp/iter_6", "ddp/iter_6.pth"))
    assert ours.keys() == theirs.keys() and ours["meta"].keys() == theirs["meta"].keys()
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for index, state in theirs["optimizer"]["state"].items():
        torch.testing.assert_close(ours["optimizer"]["state"][index], state, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_segformer_in_blocks(root: Path) -> None:
    """MMSegmentation's SegFormer, whose blocks and head are sharded by themselves.

    Without ``register_fsdp_forward_method``: the head's ``loss`` computes with the parts of its parameters.
    """
    _run(root, "segformer_ddp", kind="segformer")
    _run(root, "segformer", kind="segformer", **BLOCKS)
    _assert_close(root / "segformer/iter_6", root / "segformer_ddp/iter_6.pth", 1e-5)


@pytest.mark.slow
def test_killed_and_resumed(trained: Path) -> None:
    """Both processes are killed at iteration 5 and resumed from 4: the weights of the run without interruption, bit for bit."""
    _run(trained, "killed", kind="pixelnet", stop_at=5, code=7, **SHARDED)
    assert not (trained / "killed/iter_6").exists()
    _run(trained, "killed", kind="pixelnet", resume=True, **SHARDED)
    assert (
        differences(
            read_checkpoint(trained / "killed/iter_6")["optimizer"], read_checkpoint(trained / "fsdp/iter_6")["optimizer"]
        )
        == []
    )
    assert differences(dict(_weights(trained / "killed/iter_6")), dict(_weights(trained / "fsdp/iter_6"))) == []


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
def test_resumed_by_another_number_of_processes(trained: Path, world: int) -> None:
    """Weights and optimizer are those that two processes wrote; a batch of another size follows, so the run is another one."""
    name = f"by{world}"
    shutil.copytree(trained / "fsdp/iter_4", trained / name / "iter_4")
    output = _run(trained, name, world=world, kind="pixelnet", resume=True, stop_at=None, **SHARDED)
    assert "written by 2 processes" in output and "Load checkpoint from" in output
    _assert_close(trained / name / "iter_6", trained / "fsdp/iter_6", 0.05)
