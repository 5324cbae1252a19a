"""Every decode head that MMSegmentation ships, boosted and trained: one row each.

    python tests/heads/run.py                # under a minute on one core
    python tests/heads/run.py --only PSPHead
    python tests/heads/run.py --write        # puts the table into docs/mmsegmentation.md

Each head is built from its shipped settings, made small. `gbseg.mm.boosted_config.boosted` converts them; the head then takes
one training step (forward, loss, backward, SGD) on real tensors and predicts. It works if the loss and the logits are finite
and its weights change. With the fused resize the losses must be the same. A class of ``mmseg.models.decode_heads`` that is
registered and has no row, a row of no class, and a table that is not the page's make the exit status 1.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

warnings.filterwarnings("ignore", message="Fail to import")

import torch  # noqa: E402  (found by the path above)
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from mmseg.registry import MODELS as MMSEG_MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from torch import Tensor  # noqa: E402

import gbseg.mm  # noqa: E402, F401  (registers the losses)
from gbseg.config_files import ConfigError  # noqa: E402
from gbseg.losses import ExpGBLoss, Pow3GBLoss  # noqa: E402
from gbseg.mm.boosted_config import boosted  # noqa: E402
from gbseg.mm.hooks.fused_resize import fuse_resize  # noqa: E402

PAGE = ROOT / "docs/mmsegmentation.md"
CLASSES, SIZE, STRIDES = 3, 64, (4, 8, 16, 32)
KINDS = {"exp": ExpGBLoss, "pow3": Pow3GBLoss}
BN, GN, LN = dict(type="BN"), dict(type="GN", num_groups=4), dict(type="LN")


def maps(*strides: int, channels: int = 8) -> list[Tensor]:
    """Features of two images."""
    return [torch.randn(2, channels, SIZE // stride, SIZE // stride) for stride in strides]


def cross_entropy(**options: Any) -> dict[str, Any]:
    return dict(type="CrossEntropyLoss", use_sigmoid=False, **options)


def queries(loss: torch.nn.Module) -> Tensor:
    """``loss_cls`` as a head of queries calls it: 10 queries of 2 images, the last class is 'no object'."""
    weight = loss.class_weight
    weight = torch.ones(CLASSES + 1) if weight is None else torch.as_tensor(weight)
    logits, labels = torch.randn(20, CLASSES + 1, requires_grad=True), torch.randint(0, CLASSES + 1, (20,))
    return loss(logits, labels, torch.ones(20), avg_factor=weight[labels].sum())


def points(loss: torch.nn.Module) -> Tensor:
    """As PointRend's head calls it: 16 points of 2 images."""
    return loss(torch.randn(2, CLASSES, 16, requires_grad=True), torch.randint(0, CLASSES, (2, 16)), ignore_index=255)


class Head(NamedTuple):
    """How a head is tried.

    Attributes:
        settings: what its config gives beside those that all heads share.
        inputs: makes what it gets in training.
        tested: of these inputs, what it gets in a test.
        absent: the compiled operator or package without which it cannot be built, '' if there is none.
        alone: then its loss alone is called, in this way; None: by its class's own ``loss_by_feat``, on logits of stride 8.
        inside: the head of this name contains it, and is run instead.
        note: what the table says of the settings.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    inputs: Callable[[], Any] = lambda: maps(*STRIDES)
    tested: Callable[[Any], Any] = lambda inputs: inputs
    absent: str = ""
    alone: Callable[[torch.nn.Module], Tensor] | None = None
    inside: str = ""
    note: str = ""


EVERY: dict[str, Any] = dict(in_index=tuple(range(4)), in_channels=(8,) * 4)
KNET_UPDATE = dict(
    type="KernelUpdateHead",
    num_classes=CLASSES,
    num_heads=2,
    num_mask_fcs=1,
    feedforward_channels=16,
    in_channels=8,
    out_channels=8,
    conv_kernel_size=1,
    feat_transform_cfg=dict(conv_cfg=dict(type="Conv2d"), act_cfg=None),
    kernel_updator_cfg=dict(type="KernelUpdator", in_channels=8, feat_channels=8, out_channels=8, norm_cfg=LN),
)
KNET = dict(
    num_stages=2,
    kernel_update_head=[KNET_UPDATE] * 2,
    kernel_generate_head=dict(
        type="FCNHead", in_channels=8, channels=8, in_index=1, num_classes=CLASSES, norm_cfg=BN, loss_decode=cross_entropy()
    ),
)
OHEM = dict(type="OhemCrossEntropy", thres=0.9, min_kept=100)
PID_LOSSES = [cross_entropy(loss_weight=0.4), OHEM, dict(type="BoundaryLoss", loss_weight=20.0), OHEM]
OF_QUERIES = dict(loss_cls=cross_entropy(loss_weight=2.0, reduction="mean", class_weight=[1.0] * CLASSES + [0.1]))
HEADS = {
    "ANNHead": Head(dict(in_index=(1, 2), in_channels=(8, 8), project_channels=4, dropout_ratio=0.1)),  # it needs some
    "APCHead": Head(),
    "ASPPHead": Head(dict(dilations=(1, 2, 3, 4))),
    "CCHead": Head(absent="`mmcv.ops.CrissCrossAttention`"),
    "DAHead": Head(dict(pam_channels=4)),
    "DDRHead": Head(
        dict(loss_decode=[OHEM, {**OHEM, "loss_weight": 0.4}]),
        lambda: (*maps(8, channels=4), *maps(8)),
        lambda inputs: inputs[1],
    ),
    "DMHead": Head(),
    "DNLHead": Head(),
    "DPTHead": Head(
        {**EVERY, "input_transform": "multiple_select", "embed_dims": 8, "post_process_channels": [8] * 4},
        lambda: [(x, torch.randn(2, 8)) for x in maps(16, 16, 16, 16)],
    ),
    "DepthwiseSeparableASPPHead": Head(dict(dilations=(1, 2, 3, 4), c1_in_channels=8, c1_channels=4)),
    "DepthwiseSeparableFCNHead": Head(dict(num_convs=1)),
    "EMAHead": Head(dict(ema_channels=8, num_bases=4, num_stages=2)),
    "EncHead": Head(dict(in_index=(1, 2, 3), in_channels=(8,) * 3, num_codes=4)),
    "FCNHead": Head(),
    "FPNHead": Head({**EVERY, "feature_strides": STRIDES}),
    "GCHead": Head(),
    "ISAHead": Head(dict(isa_channels=4, down_factor=(2, 2))),
    "IterativeDecodeHead": Head(KNET),
    "KernelUpdateHead": Head(inside="IterativeDecodeHead"),
    "KernelUpdator": Head(inside="IterativeDecodeHead"),
    "LRASPPHead": Head(
        dict(in_index=(0, 1, 2), in_channels=(8,) * 3, branch_channels=(4, 4), input_transform="multiple_select"),
        lambda: maps(1, 1, 1),  # it pools windows of 49 x 49
    ),
    "LightHamHead": Head(dict(in_index=(1, 2, 3), in_channels=(8,) * 3, ham_channels=8, ham_kwargs=dict(MD_R=4), norm_cfg=GN)),
    "Mask2FormerHead": Head(OF_QUERIES, absent="`mmdet` and `mmcv.ops`", alone=queries),
    "MaskFormerHead": Head(OF_QUERIES, absent="`mmdet` and `mmcv.ops`", alone=queries),
    "NLHead": Head(),
    "OCRHead": Head(dict(ocr_channels=4)),
    "PIDHead": Head(
        dict(loss_decode=PID_LOSSES),
        lambda: (*maps(8, channels=4), *maps(8), *maps(8, channels=4)),
        lambda inputs: inputs[1],
    ),
    "PSAHead": Head(dict(mask_size=(8, 8)), absent="`mmcv.ops.PSAMask`"),
    "PSPHead": Head(),
    "PointHead": Head(absent="`mmcv.ops.point_sample`", alone=points),
    "SETRMLAHead": Head({**EVERY, "channels": 16, "mla_channels": 4}, lambda: maps(16, 16, 16, 16)),
    "SETRUPHead": Head(),
    "STDCHead": Head(
        dict(num_convs=1, num_classes=2), note="with a softmax of two classes; the sigmoid and Dice of the shipped configs stay"
    ),
    "SegformerHead": Head(EVERY),
    "SegmenterMaskTransformerHead": Head(dict(num_layers=1, num_heads=2, embed_dims=8, norm_cfg=LN)),
    "SideAdapterCLIPHead": Head(
        dict(loss_decode=[cross_entropy(loss_name="loss_cls_ce", loss_weight=2.0, class_weight=[1.0] * CLASSES + [0.1])]),
        absent="`mmcv.ops.point_sample`",
        alone=queries,
    ),
    "UPerHead": Head(EVERY),
    "VPDDepthHead": Head(dict(loss_decode=dict(type="SiLogLoss"))),
}
ALONE = ("Mask2FormerHead", "MaskFormerHead", "SideAdapterCLIPHead")
"""Heads whose classes have other arguments than `BaseDecodeHead`: what the row gives is all of their settings."""


def samples(classes: int) -> list[SegDataSample]:
    """The labels of two images, with some that are ignored, and edges for PIDNet."""
    found = []
    for _ in range(2):
        label = torch.randint(0, classes, (1, SIZE // 8, SIZE // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        label[:, :5] = 255
        edges = torch.zeros_like(label)
        edges[:, ::8] = 1
        metainfo = dict(img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE))
        sample = SegDataSample(metainfo=metainfo)
        sample.set_data(dict(gt_sem_seg=PixelData(data=label), gt_edge_map=PixelData(data=edges)))
        found.append(sample)
    return found


def config_of(name: str, head: Head) -> Config:
    """A config with this head, as its users write it."""
    settings: dict[str, Any] = {"type": name, **head.settings}
    if name not in (*ALONE, "IterativeDecodeHead", "VPDDepthHead"):
        shared = dict(in_channels=8, channels=8, in_index=1, num_classes=CLASSES, norm_cfg=BN, dropout_ratio=0.0)
        settings = {**shared, "loss_decode": cross_entropy(), **settings}
    return Config({"default_scope": "mmseg", "model": {"type": "EncoderDecoder", "decode_head": settings}})


def losses_of(head: BaseDecodeHead, head_inputs: tuple[Any, ...], batch: list[SegDataSample]) -> dict[str, Tensor]:
    """The losses of a head, with the same random numbers each time."""
    torch.manual_seed(1)
    return head.loss(*copy.deepcopy(head_inputs), batch, {})


def check(condition: object, text: object) -> None:
    if not condition:
        raise AssertionError(text)


def trained(head: BaseDecodeHead, arguments: tuple[Any, ...], tested: Callable[[Any], Any], kind: type) -> None:
    """One step of SGD, and a prediction.

    Raises:
        AssertionError: something is not finite, does not change, or no loss of this kind is there.
    """
    check(any(isinstance(module, kind) for module in head.modules()), f"there is no {kind.__name__}")
    head.train()
    before = {name: value.detach().clone() for name, value in head.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    losses = losses_of(head, arguments, samples(head.num_classes))
    total = sum(value.sum() for name, value in losses.items() if "loss" in name)
    total.backward()
    check(math.isfinite(total.item()) and total.item() > 0, f"the loss is {total.item()}")
    gradients = {name: value.grad for name, value in head.named_parameters() if value.grad is not None}
    check(all(gradient.isfinite().all() for gradient in gradients.values()), "a gradient is not finite")
    optimizer.step()
    changed = [name for name, value in head.named_parameters() if name in before and not torch.equal(before[name], value)]
    check(len(changed) > len(before) // 2, f"only {changed} of {len(before)} parameters change")
    head.eval()
    with torch.no_grad():
        metas = [sample.metainfo for sample in samples(head.num_classes)]
        logits = head.predict(tested(arguments[0]), *arguments[1:], metas, {})
    check(logits.shape == (2, head.out_channels, SIZE, SIZE) and logits.isfinite().all(), f"predicted: {logits.shape}")


def fused(head: BaseDecodeHead, arguments: tuple[Any, ...]) -> str:
    """How the fused resize does: 'works', or the reason why it is refused.

    Raises:
        AssertionError: its losses are not the head's.
    """
    batch = samples(head.num_classes)
    head.train()
    other = copy.deepcopy(head)
    try:
        fuse_resize(other)
    except ValueError as error:
        return f"refused: {str(error).removeprefix(f'{type(head).__name__} ').rstrip('.')}"
    losses, others = (losses_of(one, arguments, batch) for one in (head, other))
    check(losses.keys() == others.keys(), f"{losses.keys()} became {others.keys()}")
    for name, value in losses.items():
        check(torch.allclose(value, others[name], rtol=1e-4), f"{name}: {value} became {others[name]}")
    return "works"


def importable(module: str) -> bool:
    """Whether a module can be imported, compiled parts included."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def alone(name: str, head: Head, config: Config, kind: type) -> str:
    """Call the loss of a head that cannot be built.

    Raises:
        AssertionError: it is not finite, or has no gradient.
    """
    for module in re.findall(r"`(\w+(?:\.ops)?)", head.absent):
        check(not importable(module), f"{module} can be imported here: give the inputs of this head, so that it is built")
    settings = config.model.decode_head
    loss = settings.get("loss_cls") or settings.loss_decode
    loss = loss[0] if isinstance(loss, list) else loss
    if head.alone is None:
        # the class's loss_by_feat is BaseDecodeHead's, which FCNHead has as well
        check(MMSEG_MODELS.get(name).loss_by_feat is BaseDecodeHead.loss_by_feat, "it has a loss_by_feat of its own")
        stand_in = MODELS.build(dict(type="FCNHead", in_channels=8, channels=8, num_classes=CLASSES, loss_decode=loss))
        logits = torch.randn(2, CLASSES, SIZE // 8, SIZE // 8, requires_grad=True)
        value = BaseDecodeHead.loss_by_feat(stand_in, logits, samples(CLASSES))[stand_in.loss_decode.loss_name]
    else:
        built = MODELS.build(dict(loss))
        check(isinstance(built, kind), f"it is a {type(built).__name__}")
        value = head.alone(built)
    value.backward()
    check(math.isfinite(value.item()) and value.item() > 0, f"the loss is {value.item()}")
    return "loss alone works"


def tried(name: str) -> list[str]:
    """The row of a head: boosted with exp-GB, with pow3-GB, with the fused resize, and what to know of it.

    Raises:
        AssertionError: it neither works nor is it refused with a reason.
    """
    head = HEADS[name]
    if head.inside:
        return ["works"] * 2 + ["as that head"] + [f"run inside of {head.inside}"]
    cells, resize, notes = [], "", [head.note] if head.note else []
    for boost, kind in KINDS.items():
        try:
            result = boosted(config_of(name, head), boost)
        except ConfigError as error:
            reason = str(error).rpartition(" stays: ")[2].rstrip(".")
            cells.append(f"refused: {reason}")
            continue
        notes += [str(left) for left in result.left]
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmseg"):
            if head.absent:
                cells.append(alone(name, head, result.config, kind))
                continue
            model = MODELS.build(copy.deepcopy(result.config.model.decode_head))
        model.init_weights()
        arguments: tuple[Any, ...] = (head.inputs(),)
        if name == "OCRHead":
            arguments += (torch.randn(2, CLASSES, 8, 8),)
        trained(model, arguments, head.tested, kind)
        resize = resize or fused(model, arguments)
        cells.append("works")
    if head.absent:
        notes.append(f"not built: there is no {head.absent} here")
    return [*cells, resize or "not run", "; ".join(dict.fromkeys(notes))]


def registered() -> set[str]:
    """The decode heads that MMSegmentation registers, by name."""
    return {
        name
        for name, kind in MMSEG_MODELS.module_dict.items()
        if kind.__module__.startswith("mmseg.models.decode_heads.")
        or (isinstance(kind, type) and issubclass(kind, BaseDecodeHead) and kind.__module__.startswith("mmseg."))
    }


def main() -> int:
    """Try all heads; the exit status is 1 if one has no row, does not do what its row says, or the page says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=HEADS, metavar="HEAD", help="one head; the page is not looked at")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    # it tells how each weight is initialised
    MMLogger.get_instance("heads", log_level=logging.ERROR)
    wrong = [f"{name}: no row for this registered head" for name in sorted(registered() - HEADS.keys())]
    wrong += [f"{name}: a row, and no such head" for name in sorted(HEADS.keys() - registered())]
    lines = ["| head | `--boost exp` | `--boost pow3` | fused resize | |", "| --- | --- | --- | --- | --- |"]
    for name in [arguments.only] if arguments.only else HEADS:
        try:
            lines.append(f"| {name} | {' | '.join(tried(name))} |".replace("  |", " |"))
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    table = "\n".join(lines)
    print(table, *wrong, sep="\n")
    if not arguments.only and not wrong:
        page = PAGE.read_text()
        new = re.sub(r"(?s)(<!-- decode heads -->\n).*?(\n<!-- end -->)", lambda match: match[1] + table + match[2], page)
        if arguments.write:
            PAGE.write_text(new)
        elif new != page:
            wrong.append(f"{PAGE.relative_to(ROOT)} has another table: run python tests/heads/run.py --write")
            print(wrong[-1])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
