"""The loss on the validation set, for the log, early stopping and the choice of the best checkpoint."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from gbseg.mm.compat import unwrap_model

__all__ = ["ValidationLossHook"]

# for those who choose by it, and in the log, where the training's loss has its name already
NAME, LOGGED_NAME = "loss", "val_loss"
# heads with losses of several outputs: those of the one that is predicted
_PREDICTED = {"PIDHead": slice(1, 2), "DDRHead": slice(0, 1)}
# whose losses are no function of their predictions
_OTHERS = ("SideAdapterCLIPHead", "VPDDepthHead")
_HOW = "Leave out val_loss, and monitor a score such as mIoU."


@HOOKS.register_module()
class ValidationLossHook(Hook):
    """Add ``loss`` to the scores of a validation: the training losses of the main head, on what it predicts.

    Then ``save_best='loss'`` and ``EarlyStoppingHook(monitor='loss')`` work. In the log and in TensorBoard it is ``val_loss``,
    a curve of its own beside the training's ``loss``; choosing by this name works too. ``gbseg train`` has this hook where a
    config says ``val_loss = True``.

    Of a segmentor, each loss in ``decode_head.loss_decode`` is computed on ``seg_logits``, which have the size of the label,
    and averaged over the labelled pixels of the whole set (weights of labels in its numerator and its divisor); a loss that is
    no mean over pixels, such as Dice, is computed for each image and weighted by its labelled pixels. A pixel sampler of the
    head takes no part, and auxiliary heads do not. Of a classifier it is ``head.loss_module`` of ``head``'s output, averaged
    over the images. Images that a sampler repeats to give every process equally many count once.

    Raises:
        ValueError: before training, the main head has no losses of its predictions, or keeps no logits. While validating, the
            samples hold no logits or no labels, their sizes differ, or the evaluator gives a ``loss`` as well.
    """

    # after MMEngine's RuntimeInfoHook, which would log it as "loss", and before all that read the scores or write the log
    priority = "HIGH"
    head: Any = None
    classifier: Any = None

    def before_train(self, runner: Runner) -> None:
        """Find the losses, and say what is computed."""
        if runner.val_loop is None:
            raise ValueError(
                "val_loss=True needs a validation: give val_dataloader, val_cfg and val_evaluator, or leave it out."
            )
        model: Any = unwrap_model(runner.model)
        head = getattr(model, "decode_head", None)
        self.head = head[-1] if isinstance(head, nn.ModuleList) else head
        self.classifier = getattr(model, "head", None) if self.head is None else None
        if self.head is not None:
            names = ", ".join(type(loss).__name__ for loss in self._losses())
            what = f"{names} of decode_head, over the labelled pixels"
        elif isinstance(getattr(self.classifier, "loss_module", None), nn.Module):
            what = f"{type(self.classifier.loss_module).__name__} of head, over the images"
        else:
            raise ValueError(f"val_loss: {type(model).__name__} has neither decode_head nor a head with a loss_module. {_HOW}")
        runner.logger.info(f"{LOGGED_NAME}: the mean of {what} of the validation set.")

    def _losses(self) -> list[nn.Module]:
        """The losses of the main head that are functions of its predictions."""
        name = type(self.head).__name__
        # KNet's head passes its final logits to the losses of another one
        owner = getattr(self.head, "kernel_generate_head", self.head)
        losses = getattr(owner, "loss_decode", None)
        if losses is None or name in _OTHERS:
            raise ValueError(f"val_loss: the losses of {name} are not computed from its predictions. {_HOW}")
        if getattr(self.head, "out_channels", None) == 1:
            raise ValueError(f"val_loss: {name} has one output, and predictions keep its sigmoid, not its logits. {_HOW}")
        return (list(losses) if isinstance(losses, nn.ModuleList) else [losses])[_PREDICTED.get(name, slice(None))]

    def before_val_epoch(self, runner: Runner) -> None:
        """Reset the sums."""
        self._seen = 0
        # of each loss: its sum, and that of its weights
        self._sums: Tensor | None = None
        self._outputs: list[Any] = []
        self._handle: Any = None
        if self.classifier is not None:
            # predictions keep the probabilities alone
            self._handle = self.classifier.register_forward_hook(lambda _module, _inputs, output: self._outputs.append(output))

    @torch.no_grad()
    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Add one batch."""
        rank, world = get_dist_info()
        samples = list(outputs or ())
        positions = [(self._seen + index) * world + rank for index in range(len(samples))]
        self._seen += len(samples)
        # the sampler repeats the first images to fill the last round
        counts = [position < len(runner.val_dataloader.dataset) for position in positions]
        if self.head is not None:
            for sample in (sample for sample, is_counted in zip(samples, counts, strict=True) if is_counted):
                self._add(self._of_image(sample))
        elif self.classifier is not None:
            logits, self._outputs = self._outputs, []
            if any(counts):
                self._add(self._of_batch(logits, samples, counts))

    def _add(self, sums: Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums

    def _of_image(self, sample: Any) -> Tensor:
        """(L, 2) float64: of each loss its sum over the pixels of an image, and the sum of their weights."""
        for key in ("seg_logits", "gt_sem_seg"):
            if key not in sample:
                raise ValueError(f"val_loss: {sample.get('img_path')} has no {key}. {_HOW}")
        logits = sample.seg_logits.data.float().unsqueeze(0)
        label = sample.gt_sem_seg.data.to(logits.device).long().view(1, *sample.gt_sem_seg.data.shape[-2:])
        if logits.shape[2:] != label.shape[1:]:
            sizes = f"logits of {tuple(logits.shape[2:])} and a label of {tuple(label.shape[1:])} pixels"
            raise ValueError(f"val_loss: {sample.get('img_path')} has {sizes}: load annotations after Resize.")
        rows = [_pixel_loss(loss, logits, label, self.head.ignore_index) for loss in self._losses()]
        return torch.stack(rows)

    def _of_batch(self, outputs: list[Any], samples: list[Any], counts: list[bool]) -> Tensor:
        """(1, 2) float64: the sum of a classifier's loss over the images of a batch, and their number."""
        (logits,) = outputs if len(outputs) == 1 else (None,)
        if not isinstance(logits, Tensor) or len(logits) != len(samples):
            raise ValueError(f"val_loss: {type(self.classifier).__name__} gives no single tensor of logits. {_HOW}")
        key = "gt_score" if "gt_score" in samples[0] else "gt_label"
        if key not in samples[0]:
            raise ValueError(f"val_loss: the validation samples have no {key}. {_HOW}")
        labels = [getattr(sample, key) for sample in samples]
        target = (torch.stack if key == "gt_score" else torch.cat)(labels).to(logits.device)
        kept = torch.tensor(counts, device=logits.device)
        number = sum(counts)
        value = self.classifier.loss_module(logits[kept].float(), target[kept], avg_factor=number)
        return torch.stack([value.double() * number, value.new_tensor(number, dtype=torch.float64)]).view(1, 2)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the sums of all processes up, and the loss to the scores."""
        if self._handle is not None:
            self._handle.remove()
        if metrics is None or (self.head is None and self.classifier is None):
            return
        if taken := {NAME, LOGGED_NAME} & set(metrics):
            raise ValueError(f"val_loss: the validation gives a score called {taken.pop()} already. {_HOW}")
        losses = 1 if self.head is None else len(self._losses())
        device = next(runner.model.parameters()).device
        sums = torch.zeros(losses, 2, dtype=torch.float64, device=device) if self._sums is None else self._sums
        all_reduce(sums)
        metrics[NAME] = metrics[LOGGED_NAME] = float((sums[:, 0] / sums[:, 1]).sum())
        runner.message_hub.update_scalar(f"val/{LOGGED_NAME}", metrics[NAME])


def _pixel_loss(loss: nn.Module, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """(2,) float64: the sum of a loss over the labelled pixels of an image, and that of their weights.

    Args:
        loss: gbseg's, MMSegmentation's, or one that is called like them.
        logits: (1, C, H, W) float32.
        label: (1, H, W) int64.
        ignore_index: label of pixels that do not count.
    """
    valid = label != ignore_index
    count = valid.sum().double()
    weights = count
    value: Tensor | None = None
    if "reduction_override" in inspect.signature(loss.forward).parameters:
        value = loss(logits, label, ignore_index=ignore_index, reduction_override="none")
    if value is not None and value.shape == label.shape:
        total = value.sum(dtype=torch.float64)
        weight = getattr(loss, "class_weight", None)
        # of labels: they divide the mean as well
        if weight is not None and getattr(loss, "weighs_labels", True):
            weight = torch.as_tensor(weight, device=label.device)
            weights = torch.where(valid, weight[label.masked_fill(~valid, 0)], 0).sum(dtype=torch.float64)
    else:
        # an image without labels may make it NaN
        total = torch.where(count > 0, loss(logits, label, ignore_index=ignore_index).double() * count, 0)
    return torch.stack([total, weights])
