"""A checkpoint of another network, number of classes or boost: refused by name, and where it is a start, said in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_segmentors import LOSSES, write_segmentor

import gbseg
from gbseg.cli import main
from gbseg.data.scenes import write_scenes
from gbseg.mm import load_config
from gbseg.mm.checkpoint_weights import MismatchError, require_some_weights, weights_table
from gbseg.mm.config_difference import boost_changes
from gbseg.mm.run_comparison import draw_predictions

TRAINING = """
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{data}',
    ann_file='ImageSets/Segmentation/train.txt', pipeline=test_pipeline,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass')))
val_dataloader = val_cfg = val_evaluator = None
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-5))
train_cfg = dict(type='ResumableIterLoop', max_iters=2)
vis_backends = []
visualizer = dict(_delete_=True, type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(checkpoint=dict(interval=1))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=2, val=1, size=(48, 64))


def _segmentor(folder: Path, scenes: Path, loss: str = "pow3", change: tuple[str, str] = ("", ""), **meta: Any) -> tuple:
    """As `write_segmentor`, whose checkpoint also holds its config, as those of a training do."""
    config, checkpoint = write_segmentor(folder, loss=loss, data=scenes, extra=TRAINING.format(data=scenes), change=change)
    stored = torch.load(checkpoint, weights_only=False)
    stored["meta"]["cfg"] = "\n".join(f"{key} = {value!r}" for key, value in load_config(config).items())
    stored["meta"] |= {"iter": 1, "epoch": 0, **meta}
    hub = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}
    torch.save({**stored, "message_hub": hub}, checkpoint)
    return config, checkpoint


def _test(config: Path, checkpoint: Path, folder: Path, *options: str) -> int:
    return main(["test", str(config), str(checkpoint), "--work-dir", str(folder / "work"), *options])


def _predict(config: Path, checkpoint: Path, folder: Path, *options: str) -> int:
    Image.new("RGB", (40, 30)).save(folder / "image.png")
    arguments = [str(config), str(checkpoint), str(folder / "image.png"), "--out", str(folder / "out")]
    return main(["predict", *arguments, *options])


def _resume(config: Path, checkpoint: Path, folder: Path, *options: str) -> int:
    options = (*(options or ("--cfg-options",)), "resume=True", f"load_from={checkpoint}")
    return main(["train", str(config), "--work-dir", str(folder / "run"), *options])


COMMANDS = [_test, _predict, _resume]
CHANGES: dict[str, tuple[tuple[str, str], list[str]]] = {
    "classes": (("num_classes=21", "num_classes=5"), ["2 of the network's", "model.decode_head.num_classes: 21 -> 5"]),
    "width": (("hidden=(8,)", "hidden=(9,)"), ["of the network's", "model.decode_head.hidden[0]: 8 -> 9"]),
    "depth": (("hidden=(8,)", "hidden=(8, 8)"), ["is missing", "model.decode_head.hidden: [8] -> [8, 8]"]),
    "boost": (
        (LOSSES["pow3"], LOSSES["exp"]),
        ["another boost: model.decode_head.loss_decode was Pow3GBLoss(CubicBoost(alpha=0.001, beta=0.4)", "is ExpGBLoss("],
    ),
    "softmax": ((LOSSES["pow3"], LOSSES["softmax"]), ["another boost", "is a softmax of the outputs in the config"]),
    "alpha": (("alpha=0.001", "alpha=0.002"), ["another boost", "CubicBoost(alpha=0.002, beta=0.4)"]),
    "targets": (("targets=(0, 10)", "targets=(0, 12)"), ["another boost", "targets=(0.0, 12.0)"]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("command", COMMANDS, ids=["test", "predict", "resume"])
def test_another_network_or_boost_is_refused(
    command: Callable, name: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is scored, predicted or trained.

    Without the comparison: of a resumed run another number of classes trained on with a random layer, and another boost was
    accepted by all three.
    """
    change, parts = CHANGES[name]
    _, checkpoint = _segmentor(tmp_path / "old", scenes)
    config, _ = write_segmentor(tmp_path / "new", data=scenes, extra=TRAINING.format(data=scenes), change=change)
    assert command(config, checkpoint, tmp_path) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"gbseg: {checkpoint} ") and "--cfg-options allow_mismatch=True" in message
    assert all(part in message for part in parts), message
    assert not list(tmp_path.rglob("scores.json")) and not list((tmp_path / "run").rglob("*.pth"))


@pytest.mark.parametrize("name", ["classes", "depth", "boost"])
@pytest.mark.parametrize("command", COMMANDS, ids=["test", "predict", "resume"])
@pytest.mark.slow
def test_what_is_allowed_is_a_warning(
    command: Callable, name: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``allow_mismatch=True`` takes what fits.

    Without it: the refusal above; without `keep_fitting`, one of torch's own at the averaged weights.
    """
    # the other way round: the scenes have 21 classes
    _, checkpoint = _segmentor(tmp_path / "old", scenes, change=CHANGES[name][0])
    stored = torch.load(checkpoint, weights_only=False)
    averaged = {f"module.{name}": value.clone() for name, value in stored["state_dict"].items()}
    torch.save({**stored, "ema_state_dict": {**averaged, "steps": torch.tensor(1)}}, checkpoint)
    extra = TRAINING.format(data=scenes) + "custom_hooks = [dict(type='EMAHook')]\n"
    config, _ = write_segmentor(tmp_path / "new", data=scenes, extra=extra)
    assert command(config, checkpoint, tmp_path, "--cfg-options", "allow_mismatch=True") == 0
    captured = capsys.readouterr()
    output = captured.out + captured.err
    assert "does not belong to this config (allow_mismatch=True): " in output


def test_what_is_the_same_is_taken(scenes: Path, tmp_path: Path) -> None:
    """Also where the checkpoint holds no config, holds one that is no Python, or writes the same loss in another way.

    Or weighs and bounds it otherwise, which ``docs/faq.md`` advises before a run that diverged is resumed.
    """
    config, checkpoint = _segmentor(tmp_path / "old", scenes)
    gbseg.Segmenter(config, checkpoint, "cpu")
    other, _ = write_segmentor(
        tmp_path / "new", data=scenes, change=("targets=(0, 10)", "targets=[0.0, 10], loss_weight=2.0, max_delta=5")
    )
    gbseg.Segmenter(other, checkpoint, "cpu")
    stored = torch.load(checkpoint, weights_only=False)
    exp, _ = write_segmentor(tmp_path / "exp", data=scenes, loss="exp")
    for cfg in (None, "model = dict(", "model = 3", 5):
        stored["meta"]["cfg"] = cfg
        torch.save(stored, tmp_path / "other.pth")
        gbseg.Segmenter(exp, tmp_path / "other.pth", "cpu")


def test_parts_that_only_training_has(scenes: Path, tmp_path: Path) -> None:
    """An auxiliary head's tensors are of no use in a prediction; more layers of the trunk are another network.

    Without the look at the checkpoint's other tensors: a ResNet-50 took the half of a ResNet-101.
    """
    config, checkpoint = _segmentor(tmp_path / "old", scenes)
    stored = torch.load(checkpoint, weights_only=False)
    del stored["meta"]["cfg"]
    stored["state_dict"]["auxiliary_head.conv_seg.weight"] = torch.ones(3)
    torch.save(stored, tmp_path / "auxiliary.pth")
    gbseg.Segmenter(config, tmp_path / "auxiliary.pth", "cpu")
    stored["state_dict"]["backbone.layer9.weight"] = torch.ones(3)
    torch.save(stored, tmp_path / "deeper.pth")
    with pytest.raises(MismatchError, match=r"1 of the checkpoint's tensors are not in the network: backbone\.layer9\.weight"):
        gbseg.Segmenter(config, tmp_path / "deeper.pth", "cpu")
    gbseg.Segmenter(config, tmp_path / "deeper.pth", "cpu", allow_mismatch=True)


def test_pictures_of_runs_are_of_their_own_network(scenes: Path, tmp_path: Path) -> None:
    """`compare` drew the labels of a random layer."""
    _, checkpoint = _segmentor(tmp_path / "old", scenes)
    config, _ = write_segmentor(
        tmp_path / "new",
        data=scenes,
        extra=TRAINING.format(data=scenes).replace(
            "val_dataloader = val_cfg = val_evaluator", "val_dataloader = test_dataloader\nval_cfg = val_evaluator"
        ),
        change=("num_classes=21", "num_classes=5"),
    )
    (tmp_path / "run").mkdir()
    checkpoint.rename(tmp_path / "run/iter_1.pth")
    with pytest.raises(MismatchError, match="does not belong to this config"):
        draw_predictions({"a": (load_config(config), tmp_path / "run")}, [0], tmp_path / "a.png")


def test_fine_tuning_loads_what_fits(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One table; another boost is a warning. Without the table: lines of MMEngine's on the terminal, tensor by tensor."""
    _, checkpoint = _segmentor(tmp_path / "old", scenes, change=("num_classes=21", "num_classes=5"))
    config, _ = write_segmentor(
        tmp_path / "new",
        data=scenes,
        loss="exp",
        extra=TRAINING.format(data=scenes),
    )
    command = ["train", str(config), "--work-dir", str(tmp_path / "run"), "--cfg-options", f"load_from={checkpoint}"]
    assert main(command) == 0
    output = capsys.readouterr().out
    table = output[output.index(f"Weights of {checkpoint}: ") :].splitlines()
    assert table[1].split() == ["loaded", "left", "random", "unused"]
    rows = {line.split()[0]: list(map(int, line.split()[1:])) for line in table[2:4]}
    assert rows["backbone"][0] > 0 and rows["backbone"][1:] == [0, 0] and rows["decode_head"][1:] == [2, 2]
    assert "(5, 8) instead of (21, 8)" in table[4] and table[4].split()[:2] == ["left", "random:"]
    assert "size mismatch" not in output
    assert "was trained with another boost, from which this run starts: model.decode_head.loss_decode was Pow3GBLoss(" in output


def test_fine_tuning_needs_the_trunk() -> None:
    """Without it: a head that fits by chance was enough, and the trunk stayed random."""
    network = torch.nn.ModuleDict({"backbone": torch.nn.BatchNorm2d(3), "head": torch.nn.Linear(2, 3)})
    head = {"head.weight": torch.ones(3, 2), "head.bias": torch.ones(3), "backbone.num_batches_tracked": torch.tensor(3)}
    with pytest.raises(ValueError, match=r"one of the 4 tensors of the network's backbone \(backbone\.weight, "):
        require_some_weights(network, {"state_dict": head}, "head.pth")
    require_some_weights(network, {"state_dict": {"backbone.bias": torch.ones(3)}}, "part.pth")
    text = weights_table(network, {"state_dict": {"backbone.bias": torch.ones(3), "neck.a": torch.ones(1)}})
    assert text.splitlines()[2:] == [
        "  backbone       1            3       0",
        "  head           0            2       0",
        "  neck           0            0       1",
        "  left random: backbone.weight, backbone.running_mean, backbone.running_var, head.weight, ...",
        "  unused: neck.a",
    ]


def test_which_losses_mean_the_same() -> None:
    """Of a list the first boosted one counts, of a cascade the last head, of other authors' losses nothing is known."""

    def changed(old: Any, new: Any, head: str = "decode_head", auxiliary: bool = False) -> int:
        key = "loss" if head == "head" else "loss_decode"
        models = ({"model": {head: value if isinstance(value, list) else {key: value}}} for value in (old, new))
        return len(boost_changes(*models, auxiliary))

    exp, pow3, softmax = {"type": "ExpGBLoss"}, {"type": "Pow3GBLoss"}, {"type": "CrossEntropyLoss"}
    boosted = {"type": "BoostedLoss", "boost": {"type": "ExponentialBoost", "alpha": 0.1}, "targets": [0, 16]}
    assert changed(exp, {"type": "gbseg.ExpGBLoss", "alpha": 0.1, "class_weight": [1, 2]}) == 0
    assert changed(exp, pow3) == changed(exp, softmax) == changed(softmax, {**softmax, "use_sigmoid": True}) == 1
    assert changed(exp, pow3, "head") == 1
    assert changed(softmax, {"type": "mmseg.DiceLoss"}) == changed(softmax, {"type": "MyLoss"}) == 0
    assert changed(exp, {**boosted, "boost": {"type": "NoBoost"}}) == 1
    assert changed([{"loss_decode": exp}, {"loss_decode": softmax}], [{"loss_decode": pow3}, {"loss_decode": softmax}]) == 0
    assert changed(exp, pow3, "auxiliary_head") == 0 and changed(exp, pow3, "auxiliary_head", auxiliary=True) == 1
    inner = {"model": {"module": {"decode_head": {"loss_decode": exp}}}}
    assert len(boost_changes({"model": {"decode_head": {"loss_decode": pow3}}}, inner, False)) == 1
    assert boost_changes({"model": 3}, inner, False) == []
