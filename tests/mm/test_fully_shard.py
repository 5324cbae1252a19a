"""FSDP2: two gloo processes train a PixelNet and a SegFormer as DistributedDataParallel does, and checkpoint by DCP."""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from engine_tiny import SERVER, differences
from mmengine.config import Config
from PIL import Image
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from gbseg.mm.checkpoint_contents import convert_checkpoint
from gbseg.mm.checkpoint_files import newest_readable_checkpoint
from gbseg.mm.checkpoint_loading import CheckpointError, UnsafeCheckpointError, read_checkpoint
from gbseg.mm.config import load_config
from gbseg.mm.sharded_checkpoint import file_record
from gbseg.prediction.testing import test as evaluate

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
        # Adam would make steps of the sign of rounding errors: gradients of a bias before a normalisation are zero
        config.optim_wrapper.optimizer = dict(type="SGD", lr=0.05, momentum=0.9)
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.optim_wrapper.update(clip_grad=dict(max_norm=0.5))
    config.param_scheduler = [dict(type="LinearLR", start_factor=0.1, begin=0, end=MAX_ITERS, by_epoch=False)]
    config.train_cfg.update(max_iters=MAX_ITERS, val_interval=3)
    config.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=2, save_best="mIoU", rule="greater")
    config.merge_from_dict(options)
    return config


def _train(root: Path, name: str, rank: int, world: int, stop_at: int | None, resume: bool, limit: int, **options: Any) -> None:
    """One of ``world`` processes; ``stop_at``: each dies after this iteration, with no chance to do anything.

    ``limit``: what a file of the last process may hold.
    """
    from mmengine.hooks import Hook

    from gbseg.mm import training

    torch.set_num_threads(1)
    if limit and rank == world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
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
        faulthandler.enable(sys.stdout)
        try:
            training.train(
                config, root / name, resume=resume, launcher="pytorch" if torch.distributed.is_initialized() else "none"
            )
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _run(
    root: Path,
    name: str,
    world: int = 2,
    stop_at: int | None = None,
    resume: bool = False,
    limit: int = 0,
    code: int = 0,
    **options: Any,
) -> str:
    """What all processes have said.

    One of about a hundred runs ended by a segmentation fault in PyTorch (2.15, gloo), somewhere in the gathering of a whole
    checkpoint, which 15,000 gatherings alone did not show. Such a run is made once more, and its stack is a warning.
    """
    before = root / f"{name}.before"
    if (root / name).exists():
        shutil.copytree(root / name, before)
    codes, output = _run_once(root, name, world, (stop_at, resume, limit), options)
    if -signal.SIGSEGV in codes:
        warnings.warn(output[output.find("Fatal Python error") :], stacklevel=2)
        shutil.rmtree(root / name, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, root / name)
        codes, output = _run_once(root, name, world, (stop_at, resume, limit), options)
    shutil.rmtree(before, ignore_errors=True)
    assert codes == [code] * world, output
    return output


def _run_once(root: Path, name: str, world: int, how: tuple, options: dict[str, Any]) -> tuple[list[int | None], str]:
    (root / f"{name}.meet").unlink(missing_ok=True)
    processes = [SERVER.Process(target=_train, args=(root, name, rank, world, *how), kwargs=options) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    output = "".join((root / f"{name}.{rank}.txt").read_text() for rank in range(world))
    return [process.exitcode for process in processes], output


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
    weights of `wrap_model`: mmengine fails at broadcasting the parts.
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

    Without ``register_fsdp_forward_method``: the head's ``loss`` meets the parts of its parameters, and fails.
    """
    _run(root, "segformer_ddp", kind="segformer")
    _run(root, "segformer", kind="segformer", **BLOCKS)
    _assert_close(root / "segformer/iter_6", root / "segformer_ddp/iter_6.pth", 1e-5)


@pytest.mark.slow
def test_unequal_labels(root: Path) -> None:
    """Images of 4 to 32 labelled rows: FSDP2 gives the weights of one process with the whole batch.

    With ``sync_divisor=False`` it does not, as seen below.
    """
    shutil.copytree(root / "voc", root / "voc2")
    for number, path in enumerate(sorted((root / "voc2/SegmentationClass").iterdir())):
        label = np.asarray(Image.open(path)).copy()
        label[4 * (number + 1) :] = 255
        Image.fromarray(label).save(path)
    # normalised by image: BatchNorm would see the images of its process alone
    options: dict[str, Any] = {
        "kind": "segformer",
        "train_dataloader.dataset.data_root": str(root / "voc2"),
        "model.decode_head.norm_cfg": dict(type="GN", num_groups=3),
    }
    _run(root, "unequal1", world=1, **options, **{"train_dataloader.batch_size": 4})
    output = _run(root, "unequal2", **options, **BLOCKS)
    assert "sync_divisor" in output
    _assert_close(root / "unequal2/iter_6", root / "unequal1/iter_6.pth", 1e-4)
    _run(root, "unequal3", **options, **BLOCKS, **{"model.decode_head.loss_decode.sync_divisor": False})
    with pytest.raises(AssertionError, match="not close"):
        _assert_close(root / "unequal3/iter_6", root / "unequal1/iter_6.pth", 1e-3)


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


@pytest.mark.slow
def test_resumed_from_a_file_of_another_run(trained: Path) -> None:
    """A file of DistributedDataParallel is resumed with FSDP2: weights and optimizer are split, and it ends as that run did.

    Without `_share`: Adam finds whole tensors beside its parts, and fails.
    """
    (trained / "switched").mkdir()
    shutil.copy(trained / "ddp/iter_4.pth", trained / "switched")
    _run(trained, "switched", kind="pixelnet", resume=True, **SHARDED)
    _assert_close(trained / "switched/iter_6", trained / "ddp/iter_6.pth", 1e-5)


@pytest.mark.slow
def test_gradients_between_two_steps_are_resumed(trained: Path) -> None:
    """A step is taken at every third iteration, and a checkpoint lies between two.

    Without the own parts in `gbseg.mm.gradient_accumulation`: the file holds ``DTensor``, which no reader takes.
    """
    options: dict[str, Any] = {"optim_wrapper.accumulative_counts": 3, **SHARDED}
    _run(trained, "gathered", kind="pixelnet", **options)
    _run(trained, "gathered2", kind="pixelnet", stop_at=5, code=7, **options)
    _run(trained, "gathered2", kind="pixelnet", resume=True, **options)
    assert differences(dict(_weights(trained / "gathered2/iter_6")), dict(_weights(trained / "gathered/iter_6"))) == []


@pytest.mark.slow
def test_one_process_cannot_write(trained: Path) -> None:
    """The last process meets a file limit: all stop, with one sentence, and nothing of the folder is left.

    Without the conversion of DCP's ``CheckpointException``: a traceback of each process, and the unfinished folder.
    """
    output = _run(trained, "limited", kind="pixelnet", limit=2**15, code=1, **SHARDED)
    assert output.count("CheckpointWriteError: [Errno 27]") == 2 and "iter_2 could not be written: File too large (" in output
    assert not [path for path in (trained / "limited").iterdir() if "iter" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"custom_hooks": [dict(type="EMAHook")], **SHARDED}, "EMAHook keeps a copy of the whole model in every process"),
        (
            {"model_wrapper_cfg": dict(type="FullyShard", modules=["backbon"])},
            "FullyShard: the model has no module and no class of modules backbon",
        ),
        (
            {"model_wrapper_cfg": dict(type="FullyShard", mp_policy=dict(param_dtype="half float"))},
            "mp_policy has param_dtype='half float', which is no type of PyTorch",
        ),
    ],
    ids=["ema", "modules", "mp_policy"],
)
def test_refusals(root: Path, options: dict, message: str) -> None:
    """Without the check of the hooks: ``FSDP does not support deepcopy`` in a traceback, at the beginning of the training."""
    assert message in _run(root, "refused", world=1, code=1, kind="pixelnet", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [{}, dict(mp_policy=dict(param_dtype="bfloat16", reduce_dtype="float32"))], ids=["amp", "both"]
)
def test_mixed_precision(root: Path, policy: dict) -> None:
    """``--amp``, alone and with a policy that gathers the parameters as bfloat16: what is saved is float32 and finite."""
    # what --amp sets
    settings = {"optim_wrapper": dict(type="CpuAmpOptimWrapper"), "val_cfg.fp16": True}
    name = f"amp{len(policy)}"
    _run(root, name, kind="pixelnet", model_wrapper_cfg=dict(type="FullyShard", **policy), **settings)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in _weights(root / name / "iter_6").values())


@pytest.mark.slow
def test_read_by_pytorch_and_by_the_commands(trained: Path, tmp_path: Path) -> None:
    """PyTorch's own conversion gives the weights, and so do `gbseg convert-checkpoint` and `gbseg test`."""
    folder = trained / "fsdp/iter_6"
    weights = dict(_weights(folder))
    dcp_to_torch_save(folder, tmp_path / "torch.pth")
    assert differences(dict(torch.load(tmp_path / "torch.pth")["state_dict"]), weights) == []
    assert convert_checkpoint(folder, tmp_path / "ours.pth") == {}
    assert differences(read_checkpoint(tmp_path / "ours.pth")["optimizer"], read_checkpoint(folder)["optimizer"]) == []
    config = _config(trained, "pixelnet")
    config.test_dataloader.dataset.ann_file = "ImageSets/Segmentation/train.txt"
    scores = [
        evaluate(config, path, work_dir=tmp_path / name)
        for name, path in (("folder", folder), ("file", tmp_path / "ours.pth"), ("last", trained / "fsdp/last_checkpoint"))
    ]
    assert scores[0] == pytest.approx(scores[1], nan_ok=True) and scores[0] == pytest.approx(scores[2], nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "unfinished"])
def test_damaged_folder(trained: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """The folder before it is taken, with a warning that names the damage.

    Without the record in ``rest.pth``: a changed value is resumed from.
    """
    for name in ("iter_4", "iter_6"):
        shutil.copytree(trained / "fsdp" / name, tmp_path / name)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_6"))
    assert newest_readable_checkpoint(tmp_path) == tmp_path / "iter_6"
    path = tmp_path / "iter_6/__1_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "missing": path.unlink,
        "cut": lambda: path.write_bytes(data[:1000]),
        "changed": lambda: path.write_bytes(data),
        "unfinished": (tmp_path / "iter_6/rest.pth").unlink,
    }[damage]()
    assert newest_readable_checkpoint(tmp_path) == tmp_path / "iter_4"
    reason = {
        "missing": "its file __1_0.distcp is missing",
        "cut": "its file __1_0.distcp has 1000 bytes, and ",
        "changed": "the checksum of its file __1_0.distcp is wrong",
        "unfinished": "it has no rest.pth",
    }[damage]
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "iter_6")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_metadata_run_no_code(trained: Path, tmp_path: Path) -> None:
    """DCP's metadata are a pickle. Without `_MetadataUnpickler`: the code runs, as it does in PyTorch's own reader."""
    folder = tmp_path / "iter_6"
    shutil.copytree(trained / "fsdp/iter_6", folder)
    (folder / ".metadata").write_bytes(pickle.dumps(_Touch(tmp_path / "ran")))
    rest = torch.load(folder / "rest.pth", weights_only=False)
    rest["sharded"]["files"][".metadata"] = file_record(folder / ".metadata")
    torch.save(rest, folder / "rest.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"objects made by \w+\.mkdir, named in its \.metadata"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(AttributeError):
        FileSystemReader(folder).read_metadata()
    assert (tmp_path / "ran").exists()
