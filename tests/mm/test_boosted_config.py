"""`gbseg.boost_config`: what it changes in configs of MMSegmentation and MMPretrain, and what it leaves alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import gbseg
from gbseg.cli import main
from gbseg.config_files import ConfigError
from gbseg.losses import ExpGBLoss, OhemLoss, Pow3GBLoss, SoftmaxLoss
from gbseg.mm import load_config
from gbseg.mm.boosted_config import boosted, write_config

PSPNET = "mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py"
CONFIGS = {
    "mmseg": [
        PSPNET,
        "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py",
        "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        "mmseg::ocrnet/ocrnet_hr18s_4xb4-20k_voc12aug-512x512.py",
        "mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py",
        "mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
        "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
        "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
        "mmseg::encnet/encnet_r50-d8_4xb4-20k_voc12aug-512x512.py",
        "mmseg::unet/unet-s5-d16_fcn_4xb4-ce-1.0-dice-3.0-40k_drive-64x64.py",
        "mmseg::icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py",
    ],
    "mmpretrain": [
        "mmpretrain::resnet/resnet18_8xb16_cifar10.py",
        "mmpretrain::convnext/convnext-tiny_32xb128_in1k.py",
        "mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py",
        "mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py",
    ],
}


def _built(config: Config) -> nn.Module:
    """The model on no device, without the files of its weights."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        try:
            with torch.device("meta"):
                return MODELS.build(copy.deepcopy(config.model))
        except (RuntimeError, NotImplementedError):
            return MODELS.build(copy.deepcopy(config.model))


def _plain(value: Any) -> Any:
    """A value that can be compared; the shapes of tensors, and nothing of modules, which are visited by themselves."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, nn.Module | nn.Parameter):
        return type(value).__name__
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def differing(old: nn.Module, new: nn.Module, place: str = "") -> set[str]:
    """The attributes in which two models differ, by name; of a module of another type, the module."""
    if type(old) is not type(new):
        return {place}
    found = set()
    for name in vars(old).keys() | vars(new).keys():
        one, other = (vars(model).get(name) for model in (old, new))
        if name == "_modules" or name.endswith("_hooks") or isinstance(one, nn.Module):
            continue
        if _plain(one) != _plain(other):
            found.add(f"{place}.{name}".strip("."))
    children = dict(old.named_children()), dict(new.named_children())
    if children[0].keys() != children[1].keys():
        found.add(place)
    for name in children[0].keys() & children[1].keys():
        found |= differing(children[0][name], children[1][name], f"{place}.{name}".strip("."))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("boost", ["exp", "softmax"])
@pytest.mark.parametrize(("scope", "name"), [(scope, name) for scope, names in CONFIGS.items() for name in names])
def test_what_is_printed_is_all_that_changes(scope: str, name: str, boost: str) -> None:
    """The built models have the same attributes but for those at the printed keys; so have the configs."""
    config = load_config(name)
    before = config.to_dict()
    result = boosted(config, boost)
    assert config.to_dict() == before
    places = {change.key.removeprefix("model.") for change in result.changes if change.key.startswith("model.")}
    # as modules are named: loss_decode[0] is loss_decode.0, and a classifier keeps its loss as loss_module
    modules = {re.sub(r"\[(\d+)\]", r".\1", place) for place in places}
    modules = {re.sub(r"(^|\.)loss$", r"\1loss_module", module) for module in modules}
    assert differing(_built(config), _built(result.config)) == modules
    changed = {change.key.partition(".")[0] for change in result.changes}
    after = result.config.to_dict()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == changed
    named = {*places, *(left.key.removeprefix("model.") for left in result.left)}
    assert {key for key, loss in _losses(before["model"]).items() if loss["type"] == "CrossEntropyLoss"} <= named


def _losses(node: Any, key: str = "") -> dict[str, Any]:
    """All settings of a type that ends in Loss or CrossEntropy, by key."""
    if isinstance(node, list):
        parts = [_losses(item, f"{key}[{index}]") for index, item in enumerate(node)]
    elif isinstance(node, dict):
        if str(node.get("type")).endswith(("Loss", "CrossEntropy")):
            return {key: node}
        parts = [_losses(value, f"{key}.{name}".strip(".")) for name, value in node.items()]
    else:
        return {}
    return {name: loss for part in parts for name, loss in part.items()}


def _model(loss: Any, kind: str = "FCNHead", **head: Any) -> Config:
    head = {"type": kind, "in_channels": 4, "channels": 4, "num_classes": 3, "num_convs": 1, "loss_decode": loss, **head}
    return Config(
        {"default_scope": "mmseg", "model": {"type": "EncoderDecoder", "backbone": {"type": "UNet"}, "decode_head": head}}
    )


def test_the_same_gradient_at_the_start() -> None:
    """Of exp-GB where the normaliser is at its level: the gradient of the cross-entropy that was there, in float64."""
    weight = [0.5, 1.0, 2.0]
    old = {"type": "CrossEntropyLoss", "loss_weight": 0.4, "class_weight": weight}
    config = gbseg.boost_config(_model(old), max_delta=None)
    with DefaultScope.overwrite_default_scope("mmseg"):
        losses = [MODELS.build(dict(loss)) for loss in (old, config.model.decode_head.loss_decode)]
    assert isinstance(losses[1], ExpGBLoss) and losses[1].loss_weight == 0.4 / 16
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    # alpha * sum_j exp(x_j) = t_pos
    logits = logits - logits.logsumexp(1, keepdim=True) + torch.tensor(160.0, dtype=torch.float64).log()
    labels = torch.randint(0, 3, (2, 5, 5), generator=generator)
    labels[0, :2] = 255
    gradients = []
    for loss in losses:
        x = logits.clone().requires_grad_()
        loss(x, labels, ignore_index=255).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ({"type": "DiceLoss"}, "it is no cross-entropy"),
        ({"type": "LovaszLoss", "reduction": "none"}, "it is no cross-entropy"),
        ({"type": "FocalLoss"}, "it is no cross-entropy"),
        ({"type": "CrossEntropyLoss", "use_sigmoid": True}, "it is a sigmoid of each output"),
        ({"type": "CrossEntropyLoss", "use_mask": True}, "it is of masks"),
        ({"type": "mmdet.CrossEntropyLoss", "bg_cls_weight": 0.1}, "a boosted loss has no bg_cls_weight"),
        ({"type": "Pow3GBLoss", "class_weight": [1, 1, 2]}, "its class_weight multiplies outputs"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_what_stays_is_named(loss: dict, reason: str) -> None:
    """Beside one that is converted; alone, there is nothing to boost."""
    result = boosted(_model([{"type": "CrossEntropyLoss"}, loss]))
    assert [left.key for left in result.left] == ["model.decode_head.loss_decode[1]"] and reason in result.left[0].reason
    assert result.config.model.decode_head.loss_decode[1] == loss
    with pytest.raises(ConfigError, match=r"no softmax cross-entropy to convert: .* stays: "):
        boosted(_model(loss))


def test_one_output_becomes_one_for_each_class() -> None:
    """Unless a loss beside it needs the one output, or the head computes its loss in a way of its own."""
    sigmoid = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 2.0}
    head = {"num_classes": 2, "out_channels": 1, "threshold": 0.3}
    result = boosted(_model(sigmoid, **head))
    new = result.config.model.decode_head
    assert (new.out_channels, new.threshold, new.loss_decode.type, new.loss_decode.loss_weight) == (
        2,
        None,
        "ExpGBLoss",
        2 / 16,
    )
    assert {change.key.rpartition(".")[2] for change in result.changes[:3]} == {"out_channels", "threshold", "loss_decode"}
    for config in (
        _model([sigmoid, {"type": "DiceLoss"}], **head),
        _model(sigmoid, "STDCHead", boundary_threshold=0.1, **head),
    ):
        with pytest.raises(ConfigError, match="sigmoid of each output"):
            boosted(config)


def test_arguments() -> None:
    """They reach the loss; the softmax takes a boosted config back."""
    plain = {"type": "CrossEntropyLoss", "loss_weight": 0.5, "class_weight": [1.0, 2.0, 3.0], "loss_name": "loss_a"}
    result = boosted(_model(plain), "pow3", alpha=0.002, targets=(1, 9), max_delta=3)
    loss = result.config.model.decode_head.loss_decode
    assert loss == {
        **dict(type="Pow3GBLoss", alpha=0.002, targets=(1, 9), max_delta=3, loss_weight=0.5 / 8),
        **dict(class_weight=[1.0, 2.0, 3.0], class_weight_mode="labels", loss_name="loss_a"),
    }
    again = boosted(result.config, "exp", max_delta=None).config.model.decode_head.loss_decode
    loss.pop("max_delta")
    assert again == {**loss, "type": "ExpGBLoss", "alpha": 0.1, "targets": (0, 16), "loss_weight": 0.5 / 16}
    back = boosted(result.config, "softmax").config.model.decode_head.loss_decode
    assert back == dict(
        type="SoftmaxLoss", loss_weight=0.5, class_weight=[1.0, 2.0, 3.0], class_weight_mode="labels", loss_name="loss_a"
    )
    hard = boosted(
        _model({"type": "OhemCrossEntropy", "thres": 0.9, "min_kept": 5}), "pow3"
    ).config.model.decode_head.loss_decode
    assert (hard.type, hard.thresh, hard.min_kept, hard.loss.type) == ("OhemLoss", 0.9, 5, "Pow3GBLoss")
    again = boosted(_model(hard), "softmax").config.model.decode_head.loss_decode
    assert (again.type, again.thresh, again.loss) == ("OhemLoss", 0.9, {"type": "SoftmaxLoss"})
    smooth = {"type": "mmpretrain.LabelSmoothLoss", "label_smooth_val": 0.1, "mode": "classy_vision", "num_classes": 3}
    assert boosted(_model(smooth)).config.model.decode_head.loss_decode.label_smoothing == 0.1 / 1.1
    for wrong in (dict(boost="cubic"), dict(boost="softmax", alpha=1.0), dict(boost="linear", alpha=1.0), dict(alpha=-1.0)):
        with pytest.raises(ValueError, match=r"boost is one of|softmax has no alpha|has no alpha|alpha"):
            boosted(_model(plain), **wrong)
    with pytest.raises(ConfigError, match=r"has no head neck with a loss; it has decode_head"):
        boosted(_model(plain), heads=["neck"])


def test_chosen_heads() -> None:
    """``decode`` is short for ``decode_head``; the other keeps its cross-entropy."""
    config = load_config(PSPNET)
    model = boosted(config, heads=["auxiliary"]).config.model
    assert model.decode_head.loss_decode == config.model.decode_head.loss_decode
    assert model.auxiliary_head.loss_decode.type == "ExpGBLoss"


def test_softmaxes_of_others() -> None:
    """The sampler of hard pixels, test-time augmentation and MMPretrain's scores; after exp-GB, a softmax is right."""
    config = _model({"type": "CrossEntropyLoss"}, sampler={"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 10})
    config.tta_model = {"type": "SegTTAModel"}
    for boost, names in (("exp", ("OHEMPixelSampler", "SegTTAModel")), ("pow3", ("LinkOHEMPixelSampler", "LinkTTAModel"))):
        result = boosted(config, boost).config
        assert (result.model.decode_head.sampler.type, result.tta_model.type) == names
    queries = _model({"type": "CrossEntropyLoss"}, "SideAdapterCLIPHead")
    with pytest.raises(ConfigError, match="takes a softmax of its outputs itself, which pow3 does not train"):
        boosted(queries, "pow3")
    classifier = load_config("mmpretrain::resnet/resnet18_8xb16_cifar10.py")
    assert [hook["type"] for hook in boosted(classifier, "pow3").config.custom_hooks] == [
        "NonFiniteGuardHook",
        "LinkScoresHook",
    ]


def test_the_written_config_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `gbseg boost -o` writes, read again; a file is not replaced."""
    for number, name in enumerate([PSPNET, "mmseg::ocrnet/ocrnet_hr18s_4xb4-20k_voc12aug-512x512.py"]):
        out = tmp_path / f"folder/{number}.py"
        assert main(["boost", name, "--boost", "pow3", "-o", str(out), "--cfg-options", "train_cfg.max_iters=7"]) == 0
        printed = capsys.readouterr().out
        assert f"{out} is written" in printed and "model.decode_head" in printed
        expected = gbseg.boost_config(load_config(name, {"train_cfg.max_iters": 7}), "pow3").to_dict()
        written = load_config(out).to_dict()
        expected.pop("cfg_options")
        assert _without_scopes(written) == _without_scopes(expected)
        own = tmp_path / "own.py"
        own.write_text(f"_base_ = ['{name}']\n")
        write_config(boosted(load_config(own)), own, tmp_path / f"folder/own{number}.py")
        assert "'../own.py'" in (tmp_path / f"folder/own{number}.py").read_text()
        load_config(tmp_path / f"folder/own{number}.py")
    for wrong, reason in ((tmp_path / "out.txt", "let its name end in .py"), (Path("/proc/x.py"), "could not be written")):
        assert main(["boost", PSPNET, "-o", str(wrong)]) == 1
        assert reason in capsys.readouterr().err and not wrong.exists()
    assert main(["boost", PSPNET, "-o", str(out)]) == 1
    assert "exists: name another file, or remove it." in capsys.readouterr().err


def _without_scopes(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != "_scope_"}
    return [_without_scopes(item) for item in node] if isinstance(node, list | tuple) else node


def test_train_with_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of a loss without ``--boost`` are refused; a config without a softmax is as well."""
    for option, value in (("--alpha", "0.2"), ("--max-delta", "none")):
        assert main(["train", PSPNET, option, value, "--work-dir", str(tmp_path / "a")]) == 1
        assert f"{option}: of a loss that --boost puts in" in capsys.readouterr().err
    assert main(["boost", PSPNET, "--max-delta", "inf"]) == 1
    assert "max_delta is a finite number, or none for no bound, not inf." in capsys.readouterr().err
    (tmp_path / "runs.py").write_text("runs = dict(a=dict())\nmodel = dict(type='EncoderDecoder')\n")
    assert main(["boost", str(tmp_path / "runs.py")]) == 1
    assert "lists the runs a: boost the config of one of them" in capsys.readouterr().err


def test_hard_pixels_are_those_of_mmsegmentation() -> None:
    """`OhemLoss` of the softmax is ``OhemCrossEntropy``, bit by bit but for rounding, ignored labels and weights included."""
    from mmseg.models.losses import OhemCrossEntropy

    generator = torch.Generator().manual_seed(1)
    for thresh, min_kept, ignored, weight in (
        (0.7, 20, 0.2, None),
        (0.1, 50, 0.0, [0.5, 1.0, 2.0, 3.0]),
        (0.9, 10**6, 0.5, None),
    ):
        logits = 3 * torch.randn(2, 4, 9, 8, generator=generator)
        labels = torch.randint(0, 4, (2, 9, 8), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
        settings = dict(thres=thresh, min_kept=min_kept, class_weight=weight, loss_weight=0.4)
        values = []
        inner = SoftmaxLoss(loss_weight=0.4, class_weight=weight, class_weight_mode="labels")
        for loss in (OhemCrossEntropy(**settings), OhemLoss(inner, thresh, min_kept)):
            x = logits.clone().requires_grad_()
            value = loss(x, labels)
            value.backward()
            values.append((value.detach(), x.grad))
        torch.testing.assert_close(values[1], values[0])
    assert float(OhemLoss(Pow3GBLoss())(logits, torch.full((2, 9, 8), 255))) == 0
    with pytest.raises(TypeError, match="is a loss of gbseg's"):
        OhemLoss(nn.CrossEntropyLoss())
