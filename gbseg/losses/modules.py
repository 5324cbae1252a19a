"""The losses that configs name, as modules: the checks that every loss makes, the boosted loss and its three usual settings.

Shapes: N images or rows, C classes, ``*`` any trailing dimensions.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gbseg.boosting import (
    Boost,
    CubicBoost,
    ExponentialBoost,
    LinearBoost,
    LossInputs,
    LossSpec,
    build_boost,
    link,
    prior_logits,
)
from gbseg.losses.functional import (
    REDUCTIONS,
    check_reduction,
    default_ignore_index,
    guard_labels,
    is_readable,
    is_recorded,
    loss_from_spec,
    without_tracer_warnings,
)
from gbseg.losses.labels import LabelRecord, require_soft_labels
from gbseg.losses.reference import target_values
from gbseg.losses.resize import resize_loss, upsample

__all__ = ["CLASS_WEIGHT_MODES", "BoostedLoss", "ExpGBLoss", "GuardedLoss", "LinearLoss", "Pow3GBLoss", "mean_over_processes"]

CLASS_WEIGHT_MODES = ("outputs", "labels")


def _read_class_weight(path: str) -> Any:
    """What a file of class weights holds, as MMSegmentation takes one; no pickle, which could run code."""
    remedy = "write one finite number >= 0 a class into a .npy (numpy.save) or a .json (a list)"
    if not path.endswith((".npy", ".json")) or not Path(path).is_file():
        raise ValueError(f"class_weight: {path} is no file .npy or .json that exists: {remedy}.")
    try:
        if path.endswith(".json"):
            return json.loads(Path(path).read_text(encoding="utf-8"))
        # the losses need torch alone
        from numpy.lib.format import read_array

        with Path(path).open("rb") as file:
            return read_array(file, allow_pickle=False)
    # any exception: a damaged header raises whatever its bytes happen to mean
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"class_weight: {path} cannot be read: {what[:200]}; {remedy}.") from None


def _class_weight(values: Sequence[float] | Tensor | str) -> Tensor:
    """The factors of the classes, (C,) of a floating dtype.

    Raises:
        ValueError: there is not one finite number >= 0 a class, or no file of them.
    """
    given = _read_class_weight(values) if isinstance(values, str) else values
    try:
        weight = torch.as_tensor(given).clone()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        weight = torch.empty(0)
    weight = weight if weight.is_floating_point() or weight.is_complex() else weight.float()
    fits = weight.ndim == 1 and len(weight) > 0 and not weight.is_complex()
    if not fits or (is_readable(weight) and not bool((torch.isfinite(weight) & (weight >= 0)).all())):
        got = reprlib.repr(given.tolist() if hasattr(given, "tolist") else given)
        if isinstance(values, str):
            raise ValueError(f"class_weight: {values} holds {got}; write one finite number >= 0 a class there.")
        raise ValueError(f"class_weight is one finite number >= 0 a class, got {got}.")
    return weight


def _count_pixels(target: Tensor, ignore_index: int | None) -> Tensor:
    """The number of pixels of checked labels that are not ignored."""
    if target.is_floating_point() or ignore_index is None:
        return target.new_full((), (target[:, 0] if target.is_floating_point() else target).numel(), dtype=torch.int64)
    return torch.count_nonzero(target != ignore_index)


def mean_over_processes(divisor: float | Tensor) -> Tensor:
    """The mean of a number over the processes, by one all-reduce; where it is on a device, the host does not wait for it."""
    # one dtype, whichever labels a process has; float32 does not hold every number of pixels
    total = torch.as_tensor(divisor).detach().double()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class GuardedLoss(nn.Module):
    """A loss between logits ``(N, C, *)`` and labels that checks shapes, options and labels before it computes.

    Args:
        class_weight: C factors, or a file ``.npy`` or ``.json`` that holds them.
        class_weight_mode: what they multiply. 'outputs': *output* j's term at every pixel, so that the link stays valid.
            'labels': the whole loss of the pixels whose label is j, and 'mean' divides by the sum of these factors; this is the
            ``weight`` of ``F.cross_entropy``. Soft labels ``p``, and labels that ``label_smoothing`` makes soft, then weigh as
            the mean over labels that are drawn from ``p``.
        loss_weight: factor of the loss.
        reduction: 'none', 'sum' or 'mean'.
        ignore_index: pixels with this label have no loss, where the call does not give another.
        label_smoothing: the share of each label that is spread over all classes, as in ``F.cross_entropy``.
        loss_name: the key under which MMSegmentation logs the loss; it starts with ``loss_``.
        sync_divisor: where several processes train, 'mean' divides by the mean of their divisors (the numbers of pixels, or
            sums of weights of labels) instead of this process's own, so that the mean of their gradients, which
            ``DistributedDataParallel`` and ``fully_shard`` take, is the gradient of one process with all their pixels. It is
            one all-reduce a call, so every process must call the loss equally often; after ``loss.eval()`` there is none. A
            given ``avg_factor`` stays as it is. None is False, which ``gbseg train`` replaces by True.

    Raises:
        ValueError: ``class_weight`` is not a vector of finite numbers >= 0 or no file of one, ``loss_weight`` is not finite,
            ``label_smoothing`` is not in [0, 1), there is no such reduction or mode, or ``loss_name`` does not start with
            ``loss_``.
    """

    record: Tensor
    class_weight: Tensor | None
    # of the class as well, for losses that were pickled without it
    sync_divisor: bool | None = None

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | str | None = None,
        class_weight_mode: str = "outputs",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        loss_name: str = "loss_guarded",
        sync_divisor: bool | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if not math.isfinite(loss_weight):
            raise ValueError(f"loss_weight must be a finite number, got {loss_weight!r}.")
        if not loss_name.startswith("loss_"):
            raise ValueError(f"loss_name must start with 'loss_' or mmengine leaves it out of the sum, got {loss_name!r}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share of the labels in [0, 1), got {label_smoothing!r}.")
        if class_weight_mode not in CLASS_WEIGHT_MODES:
            raise ValueError(f"class_weight_mode must be one of {CLASS_WEIGHT_MODES}, got {class_weight_mode!r}.")
        self.loss_weight = float(loss_weight)
        self.reduction = reduction
        self.class_weight_mode = class_weight_mode
        self.ignore_index = ignore_index
        self.label_smoothing = float(label_smoothing)
        self.loss_name = loss_name
        self.sync_divisor = sync_divisor
        self._has_warned = False
        # not in checkpoints: a loss must load the weights of a model that had another loss
        self.register_buffer("class_weight", None if class_weight is None else _class_weight(class_weight), persistent=False)
        # ``compute`` then gets labels that are weighted and smoothed already
        self.weighs_labels = class_weight is not None and class_weight_mode == "labels"
        self.register_buffer("record", torch.zeros(LabelRecord.SIZE, dtype=torch.int64), persistent=False)

    @abstractmethod
    def compute(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """The reduced loss times ``loss_weight``; every label is a class or ignored."""

    @abstractmethod
    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities that the logits stand for, summing to one along ``dim``. Labels are the *logits*' argmax."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """The loss of ``pred`` against ``target``; one signature for mmseg, mmpretrain, mmdet and plain PyTorch.

        Args:
            pred: ``(N, C, *)`` logits of any floating dtype.
            target: ``(N, *)`` integer labels, or ``(N, C, *)`` floating soft labels (constants: they get no gradient). No soft
                label is ignored; pixels that should have no loss need a ``weight`` of 0.
            weight: ``(N, *)`` factors of the pixels.
            avg_factor: the divisor of 'mean', instead of the number of pixels that are not ignored; without effect on 'none',
                refused for 'sum'.
            reduction_override: used instead of ``reduction``.
            ignore_index: pixels with this label have no loss; None means that of the constructor or, if that is None as well,
                255 where C <= 255, and else no label.
            kwargs: arguments of other losses; a warning names those that are not None.

        Returns:
            A scalar, or ``(N, *)`` for 'none'; float32 or float64.

        Raises:
            BadLabelError: a label is outside 0..C-1 and not ignored. Raised before anything is computed on the CPU; on a
                device, and where a compiler or a function transform hides the values, the loss and its gradient are NaN and,
                on a device and under ``torch.compile``, `bad_label_report` says why (soft labels that are negative or not
                finite are treated alike, without a report).
            ValueError: shapes, dtypes, devices or arguments that do not fit together; an ``avg_factor`` that is not > 0. One on
                a device is not read: the loss is NaN there, or 0 where nothing has a loss.
        """
        with without_tracer_warnings():
            reduction, ignore_index = self._check_call(
                pred, target, weight, avg_factor, reduction_override, ignore_index, kwargs, pred.shape[2:]
            )
        return self._guard(self.compute, pred, target, ignore_index, weight, avg_factor, reduction)

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` asks a module for."""
        raise NotImplementedError(
            f"{type(self).__name__} is not made for torch.jit.script, which PyTorch deprecates: use torch.compile or "
            "torch.export, or torch.jit.trace where it must be TorchScript."
        )

    def bad_label_report(self) -> str | None:
        """What was wrong with the labels that a device has seen since the start; None if nothing. Synchronises."""
        return LabelRecord.describe(self.record)

    def _guard(
        self,
        compute: Callable[..., Tensor],
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """``compute`` from checked labels, weights and divisor; NaN where one is bad that the host cannot read."""
        target, poison = self._check_labels(pred, target, ignore_index)
        # a given divisor is the caller's, who may have reduced it
        is_own_divisor = reduction == "mean" and avg_factor is None
        if self.weighs_labels:
            pred, target, pixels, divisor = self._weigh_labels(pred, target, ignore_index)
            avg_factor = divisor if avg_factor is None else avg_factor
            weight = pixels if weight is None else weight * pixels
        if is_own_divisor and self.sync_divisor and self.training and dist.is_available() and dist.is_initialized():
            avg_factor = mean_over_processes(_count_pixels(target, ignore_index) if avg_factor is None else avg_factor)
            avg_factor = avg_factor.to(torch.promote_types(pred.dtype, torch.float32))
        if reduction == "mean" and isinstance(avg_factor, Tensor):
            avg_factor = avg_factor.reshape(())
            positive = avg_factor > 0
            loss = compute(pred, target, ignore_index, weight, torch.where(positive, avg_factor, 1), reduction)
            # where all weights are 0, so is the sum of the losses
            loss = loss * torch.where(positive | (loss == 0), 1.0, torch.nan)
        else:
            loss = compute(pred, target, ignore_index, weight, avg_factor, reduction)
        return loss if poison is None else loss * poison

    def _check_labels(self, pred: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
        """See `gbseg.losses.functional.guard_labels`."""
        # a graph that is traced, and a function transform, must not write into a buffer; torch.compile keeps it up to date
        keeps_record = torch.compiler.is_compiling() or not is_recorded()
        keeps_record = keeps_record and not torch._C._are_functorch_transforms_active()
        if keeps_record:
            self._move_buffers(pred.device)
        if not target.is_floating_point():
            return guard_labels(target, pred.shape[1], ignore_index, self.record if keeps_record else None)
        if is_readable(target):
            require_soft_labels(target)
            return target, None
        return target, torch.where((torch.isfinite(target) & (target >= 0)).all(), 1.0, torch.nan)

    def smoothed(self, label: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        """Soft labels ``(N, C, *)`` of labels, integers or soft: ``label_smoothing`` of each is spread over all classes."""
        with without_tracer_warnings():
            share = self.label_smoothing / int(num_classes)
        return target_values(label, num_classes, (share, 1 - self.label_smoothing + share), dtype)

    def _weigh_labels(
        self, pred: Tensor, target: Tensor, ignore_index: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """For the mode 'labels': logits, labels, factors ``(N, *)`` of pixels, and the divisor of 'mean' for integer labels.

        Smoothed labels are soft ones, of which none is ignored: where a label was, the logits and the factor become 0.
        """
        assert self.class_weight is not None
        class_weight = self.class_weight.to(pred.device, torch.promote_types(pred.dtype, torch.float32))
        ignored = divisor = None
        if not target.is_floating_point():
            ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
            label = torch.where(ignored, 0, target)
            pixels = torch.where(ignored, 0.0, class_weight[label])
            divisor = pixels.sum()
            if not self.label_smoothing:
                return pred, target, pixels, divisor
            pred, target = torch.where(ignored.unsqueeze(1), 0.0, pred), label
        soft = self.smoothed(target, pred.shape[1], class_weight.dtype)
        shares = soft * class_weight.view(1, -1, *[1] * (soft.ndim - 2))
        pixels = shares.sum(1)
        target = shares / torch.where(pixels > 0, pixels, 1.0).unsqueeze(1)
        return pred, target, pixels if ignored is None else torch.where(ignored, 0.0, pixels), divisor

    def _move_buffers(self, device: torch.device) -> None:
        """Move the buffers to ``device`` once, for a loss that was never moved with its model."""
        if self.record.device != device:
            # a tensor made in inference mode could not be updated in training
            with torch.inference_mode(False):
                self.record = LabelRecord.empty(device)
                if self.class_weight is not None:
                    self.class_weight = self.class_weight.to(device)

    def _check_call(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction_override: str | None,
        ignore_index: int | None,
        kwargs: dict[str, object],
        size: tuple[int, ...],
    ) -> tuple[str, int | None]:
        """Refuse arguments that do not fit together, of pixels ``(N, *size)``; reduction and ``ignore_index`` of this call."""
        name = type(self).__name__
        reduction = reduction_override or self.reduction
        if reduction not in REDUCTIONS:
            raise ValueError(f"{name}: reduction_override must be one of {REDUCTIONS}, got {reduction_override!r}.")
        if pred.ndim < 2 or not pred.is_floating_point():
            raise ValueError(f"{name}: pred must be floating logits (N, C, *), got {pred.dtype} {tuple(pred.shape)}.")
        pixels = (pred.shape[0], *size)
        if target.is_floating_point():
            if target.shape != pred.shape:
                raise ValueError(
                    f"{name}: floating targets are soft labels of pred's shape {tuple(pred.shape)}, got "
                    f"{tuple(target.shape)}. If they are class numbers, pass them as integers: target.long()."
                )
            if target.requires_grad:
                raise ValueError(f"{name}: soft labels are constants here and get no gradient; pass target.detach().")
        elif target.shape != pixels:
            hint = " If they are one-hot, pass them as floats." if target.shape == pred.shape else ""
            raise ValueError(
                f"{name}: pred {tuple(pred.shape)} needs labels of shape {pixels}, got {tuple(target.shape)}.{hint}"
            )
        if pred.device != target.device:
            raise ValueError(f"{name}: pred is on {pred.device} and target on {target.device}.")
        if weight is not None and weight.shape != pixels:
            raise ValueError(f"{name}: weight must have the shape of the pixels {pixels}, got {tuple(weight.shape)}.")
        if self.class_weight is not None and len(self.class_weight) != pred.shape[1]:
            raise ValueError(f"{name}: class_weight has {len(self.class_weight)} values, pred has {pred.shape[1]} classes.")
        if avg_factor is not None:
            if reduction == "sum":
                raise ValueError(f"{name}: avg_factor divides a mean; with reduction='sum' it has no meaning.")
            check_reduction(reduction, avg_factor)
        if unknown := sorted([key for key, value in kwargs.items() if value is not None]):
            warnings.warn(f"{name} has no use for {', '.join(unknown)} and ignores it.", stacklevel=3)
        if ignore_index is None:
            ignore_index = self.ignore_index
        elif self.ignore_index not in (None, ignore_index) and not self._has_warned and not torch.compiler.is_compiling():
            self._has_warned = True
            warnings.warn(
                f"{name}(ignore_index={self.ignore_index}) is called with ignore_index={ignore_index}, which is used: heads of "
                f"MMSegmentation pass their own, so set decode_head.ignore_index={self.ignore_index} as well.",
                stacklevel=3,
            )
        return reduction, default_ignore_index(pred.shape[1]) if ignore_index is None else ignore_index


class LossOptions(TypedDict, total=False):
    """The options that every boosted loss shares; see `BoostedLoss`."""

    class_weight: Sequence[float] | Tensor | str | None
    class_weight_mode: str
    loss_weight: float
    reduction: str
    ignore_index: int | None
    label_smoothing: float
    max_delta: float | None
    impl: str
    keep_gradient: bool
    loss_name: str
    sync_divisor: bool | None


def _option(name: str) -> Any:
    """An attribute of a module that is an option of its ``spec``; assigning it validates the options again."""

    def get(self: BoostedLoss) -> Any:
        return getattr(self.spec, name)

    def set_(self: BoostedLoss, value: Any) -> None:
        self.spec = replace(self.spec, **{name: value})

    return property(get, set_, doc=f"See `gbseg.boosting.LossSpec`: ``{name}``.")


class BoostedLoss(GuardedLoss):
    """The loss whose gradient at every output is ``g(x_j) - t_j`` (paper, section 2).

    ``L = loss_weight * reduce(sum_j class_weight_j * [G(x_j) - t_j x_j + G*(t_j)])``, computed in float32 (float64 stays
    float64). Labels become ``t_pos`` for the right class and ``t_neg`` for the others; soft labels ``p`` become
    ``t_neg + (t_pos - t_neg) p``. 'mean' divides by the number of pixels that are not ignored.

    Args:
        boost: a `gbseg.boosting.Boost`, or the config of one, ``dict(type='CubicBoost', alpha=..., beta=...)``; a boost of your
            own is known by its name after `gbseg.boosting.register_boost`.
        targets: ``(t_neg, t_pos)``.
        class_weight: C factors, or a file ``.npy`` or ``.json`` that holds them.
        class_weight_mode: 'outputs', which leaves the link valid, or 'labels', the ``weight`` of ``F.cross_entropy``; see
            `GuardedLoss`.
        loss_weight: factor of the loss.
        reduction: 'none', 'sum' or 'mean'.
        ignore_index: used where the call gives none.
        label_smoothing: a share in [0, 1); it moves the two targets towards each other. With weights of labels it makes soft
            labels, whose spread share weighs as the classes to which it goes, as in ``F.cross_entropy``.
        max_delta: clamps ``g(x) - t`` to ``[-max_delta, max_delta]``; the loss is the matching Huber-like potential. Where
            the bound is reached, the minimum moves from the mean of the targets towards their median, so the link and
            `prior_logits` are then no longer exact.
        impl: 'auto', 'reference', 'cpu', 'triton' or 'compile'; see `gbseg.losses.functional.fused_boosted_loss`.
        keep_gradient: the forward writes the gradient, which is kept for the backward. False keeps nothing of the logits' size
            between the two and reads the logits twice.
        loss_name: the key under which MMSegmentation logs the loss; it starts with ``loss_``.
        sync_divisor: whether 'mean' divides by the pixels of all processes; see `GuardedLoss`.

    Raises:
        TypeError: ``boost`` is neither a boost nor a dict.
        ValueError: there is no such boost, or an option is out of its range (see `gbseg.boosting.LossSpec`).
    """

    spec: LossSpec
    boost: Boost = _option("boost")
    targets: tuple[float, float] = _option("targets")
    max_delta: float | None = _option("max_delta")
    impl: str = _option("impl")
    keep_gradient: bool = _option("keep_gradient")

    def __init__(
        self,
        boost: Boost | dict,
        targets: tuple[float, float] = (0.0, 1.0),
        *,
        class_weight: Sequence[float] | Tensor | str | None = None,
        class_weight_mode: str = "outputs",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        max_delta: float | None = None,
        impl: str = "auto",
        keep_gradient: bool = True,
        loss_name: str = "loss_boosted",
        sync_divisor: bool | None = None,
    ) -> None:
        super().__init__(
            class_weight=class_weight,
            class_weight_mode=class_weight_mode,
            loss_weight=loss_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            loss_name=loss_name,
            sync_divisor=sync_divisor,
        )
        self.spec = LossSpec(build_boost(boost), targets, max_delta, impl, keep_gradient)

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"{self.boost}, targets={self.targets}, reduction={self.reduction!r}, max_delta={self.max_delta}"

    def compute(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """The loss of checked inputs by the fastest implementation, see `gbseg.losses.functional.fused_boosted_loss`."""
        return loss_from_spec(*self._spec_and_inputs(pred, target, ignore_index, weight, avg_factor, reduction), pred)

    def _spec_and_inputs(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> tuple[LossSpec, LossInputs]:
        output_weight = None if self.weighs_labels else self.class_weight
        inputs = LossInputs(target, ignore_index, output_weight, weight, avg_factor, reduction, self.loss_weight)
        if not self.label_smoothing or self.weighs_labels:
            return self.spec, inputs
        t_neg, t_pos = self.targets
        with without_tracer_warnings():
            share = (t_pos - t_neg) * self.label_smoothing / int(pred.shape[1])
        smoothed = t_neg + share, t_pos - (t_pos - t_neg) * self.label_smoothing + share
        return replace(self.spec, targets=smoothed), inputs

    def resized(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """The loss of ``pred`` after bilinear upsampling to the labels' size, by `gbseg.losses.resize.boosted_resize_loss`.

        The upsampled logits are not held, except with ``impl`` 'reference' or 'compile', or ``label_smoothing`` and weights of
        labels together.

        Args:
            pred: (N, C, h, w) logits of any floating dtype.
            target: (N, H, W) integer labels.
            weight: (N, H, W) factors of the pixels.
            avg_factor: the divisor of 'mean', instead of the number of pixels that are not ignored; without effect on 'none',
                refused for 'sum'.
            reduction_override: used instead of ``reduction``.
            ignore_index: see ``forward``.
            align_corners: see ``torch.nn.functional.interpolate``.

        Returns:
            A scalar, or (N, H, W) for 'none'; float32 or float64.

        Raises:
            BadLabelError: a label is outside 0..C-1 and not ignored; on a device the loss is NaN instead, as in ``forward``.
            ValueError: shapes, dtypes, devices or arguments that do not fit together, or soft labels.
        """
        if pred.ndim != 4 or target.ndim != 3 or target.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.resized takes logits (N, C, h, w) and integer labels (N, H, W), got "
                f"{tuple(pred.shape)} and {target.dtype} {tuple(target.shape)}."
            )
        size = target.shape[1:]
        with without_tracer_warnings():
            reduction, ignore_index = self._check_call(
                pred, target, weight, avg_factor, reduction_override, ignore_index, {}, size
            )

        def compute(pred: Tensor, *inputs: Any) -> Tensor:
            return resize_loss(*self._spec_and_inputs(pred, *inputs), pred, align_corners)

        labels = target, ignore_index, weight, avg_factor, reduction
        # soft labels, too, need the logits of their pixels
        if self.impl in ("reference", "compile") or (self.weighs_labels and self.label_smoothing):
            return self._guard(self.compute, upsample(pred, size, align_corners), *labels)
        return self._guard(compute, pred, *labels)

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities by the loss's link, see `gbseg.boosting.link`. Labels are the argmax of the *logits*."""
        return link(logits, self.boost, self.targets, dim)

    def prior_logits(self, frequencies: Tensor) -> Tensor:
        """The (C,) logits at which `probabilities` are ``frequencies``; see `gbseg.boosting.prior_logits`."""
        return prior_logits(frequencies, self.boost, self.targets)


class ExpGBLoss(BoostedLoss):
    """exp-GB: the boosted loss with ``g(x) = alpha * exp(x)`` (paper, section 2.1).

    With ``t_neg = 0``, ``S = sum_j exp(x_j)`` and ``z = alpha * S / t_pos`` it is
    ``t_pos * [cross_entropy(x, y) + (z - ln z - 1)]``: softmax cross-entropy, ``t_pos`` times as strong, with a penalty that
    holds the normaliser at ``S = t_pos / alpha``. So divide a learning rate that suits cross-entropy under SGD by ``t_pos``.

    Args:
        alpha: factor of the exponential, > 0.
        targets: ``(t_neg, t_pos)``, both >= 0.
        options: the keyword arguments of `BoostedLoss`.
    """

    def __init__(self, alpha: float = 0.1, targets: tuple[float, float] = (0.0, 16.0), **options: Unpack[LossOptions]) -> None:
        options.setdefault("loss_name", "loss_expgb")
        super().__init__(ExponentialBoost(alpha), targets, **options)


class Pow3GBLoss(BoostedLoss):
    """pow3-GB: the boosted loss with ``g(x) = alpha * x^3 + beta`` (paper, section 2.2).

    Args:
        alpha: factor of the cube, > 0.
        beta: the value at 0.
        targets: ``(t_neg, t_pos)``.
        options: the keyword arguments of `BoostedLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.001,
        beta: float = 0.4,
        targets: tuple[float, float] = (0.0, 10.0),
        **options: Unpack[LossOptions],
    ) -> None:
        options.setdefault("loss_name", "loss_pow3gb")
        super().__init__(CubicBoost(alpha, beta), targets, **options)


class LinearLoss(BoostedLoss):
    """Half the squared error on linear outputs, ``g(x) = x`` (paper, section 1.3 and Table 1).

    Args:
        targets: ``(t_neg, t_pos)``.
        options: the keyword arguments of `BoostedLoss`.
    """

    def __init__(self, targets: tuple[float, float] = (0.0, 1.0), **options: Unpack[LossOptions]) -> None:
        options.setdefault("loss_name", "loss_linear")
        super().__init__(LinearBoost(), targets, **options)
