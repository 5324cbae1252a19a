"""Run a training step again from its dump (`gbseg.mm.step_dump`): the command ``gbseg replay``.

Forward and backward pass of the kept iterations, with the random states and parameters of then; the optimizer's step, which was
not taken, is left out. A batch norm that trains does not look at its running values, so that they have no part in it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from gbseg.mm.checkpoint_loading import CheckpointError
from gbseg.mm.compat import FAMILY, registered_types_only
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import merge_options
from gbseg.mm.rng import preserved_rng, set_rng_state
from gbseg.mm.step_dump import read_dump, rebuilt

__all__ = ["Replay", "replay"]

_MODEL_HOOKS = ("ChannelsLastHook", "FuseResizeHook")
"""Which change the model itself, and so the values."""


@dataclass
class Replay:
    """A step that was run again.

    Attributes:
        dump: what `gbseg.mm.step_dump.read_dump` gave.
        device: where it ran.
        losses: the loss terms of each iteration.
        gradients: parameter -> the gradient's Euclidean norm and its largest absolute entry, of those that have a gradient.
        bad_forward: the first module whose output was not finite; None where all were.
        bad_backward: the module whose output had the first gradient that was not finite; None where all were finite.
        bad_inputs: the parts of batch and parameters that were not finite before.
    """

    dump: dict[str, Any]
    device: str
    losses: list[dict[str, float]] = field(default_factory=list)
    gradients: dict[str, tuple[float, float]] = field(default_factory=dict)
    bad_forward: str | None = None
    bad_backward: str | None = None
    bad_inputs: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def same_losses(self) -> bool:
        """Whether all loss terms are those recorded, bit for bit."""
        recorded = [record["losses"] for record in self.dump["iterations"]]
        return len(recorded) == len(self.losses) and all(map(_same, recorded, self.losses))

    @property
    def same_gradients(self) -> bool | None:
        """Whether the largest entry of each parameter's gradient is that recorded; None where none were recorded."""
        recorded = self.dump.get("gradients")
        if not isinstance(recorded, dict):
            return None
        return _same(recorded, {name: largest for name, (_, largest) in self.gradients.items()})

    def report(self) -> str:
        """What there is to say, in lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        dump, processes = self.dump, self.dump["processes"]
        yield f"recorded on {dump['device']} with PyTorch {dump.get('torch')}; now on {self.device} with {torch.__version__}"
        if processes > 1:
            yield f"recorded by one of {processes} processes: what they shared (synchronised batch norm, divisors) is not here"
        for record, losses in zip(dump["iterations"], self.losses, strict=True):
            yield f"iteration {record['iteration']}"
            for name, value in losses.items():
                recorded = record["losses"].get(name, math.nan)
                equal = "as recorded" if _same({"": recorded}, {"": value}) else f"recorded: {recorded!r}"
                yield f"    {name} = {value!r} ({equal})"
        layers: dict[str, list[tuple[float, float]]] = {}
        for name, norms in self.gradients.items():
            layers.setdefault(name.rpartition(".")[0], []).append(norms)
        width = max((len(self._named(name)) for name in layers), default=0)
        yield f"{'gradient of layer':{width}}  {'norm':>12}  {'largest':>12}"
        for name, values in layers.items():
            norm, largest = math.hypot(*(norm for norm, _ in values)), [largest for _, largest in values]
            worst = math.nan if any(map(math.isnan, largest)) else max(largest)
            yield f"{self._named(name):{width}}  {norm if not math.isnan(worst) else worst:12.6g}  {worst:12.6g}"
        yield f"not finite before the step: {', '.join(self.bad_inputs) or 'nothing'}"
        yield f"first output that is not finite: {self.bad_forward or 'none, all layers are finite'}"
        yield f"first gradient that is not finite, backwards: {self.bad_backward or 'none'}"
        yield f"losses equal to those recorded: {'yes' if self.same_losses else 'no'}"
        gradients = {None: "none were recorded", True: "yes", False: "no"}[self.same_gradients]
        yield f"gradients equal to those recorded: {gradients}"

    def _named(self, layer: str) -> str:
        return f"{layer or 'the model itself'} ({self.kinds.get(layer, '')})"


def _same(recorded: Mapping[str, float], values: Mapping[str, float]) -> bool:
    return recorded.keys() == values.keys() and all(
        value == values[name] or (math.isnan(value) and math.isnan(values[name])) for name, value in recorded.items()
    )


def _refuse_foreign_code(config: Config, path: object) -> None:
    """Refuse a config that asks for more than registered components of the MM family."""
    imports = config.get("custom_imports") or {}
    names = imports.get("imports") or [] if isinstance(imports, Mapping) else [str(imports)]
    foreign = [name for name in ([names] if isinstance(names, str) else names) if str(name).split(".")[0] not in FAMILY]
    if not foreign and "trust_remote_code" in repr(config.get("model")):
        foreign = ["trust_remote_code"]
    if foreign:
        raise ValueError(
            f"the config in {path} asks for {', '.join(map(str, foreign))}, whose code would run: if you trust where the file "
            "comes from, repeat the command with --trust."
        )


def _build(dump: dict[str, Any], config: Config, path: object) -> nn.Module:
    """The network before the step."""
    settings = config.get("model")
    if not isinstance(settings, dict):
        raise CheckpointError(path, "its config has no model")
    init_default_scope(config.get("default_scope") or "mmengine")
    if config.get("data_preprocessor") is not None:
        settings.setdefault("data_preprocessor", config.data_preprocessor)
    with config_errors(config):
        model: nn.Module = MODELS.build(settings)
        for hook in [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]:
            if isinstance(hook, Mapping) and str(hook.get("type")).rpartition(".")[2] in _MODEL_HOOKS:
                HOOKS.build(hook).before_run(SimpleNamespace(model=model))
    if not callable(getattr(model, "parse_losses", None)):
        raise ValueError(f"{type(model).__name__} has no parse_losses: only models of MMEngine's BaseModel can be replayed.")
    try:
        model.load_state_dict(dump["state_dict"])
        buffers = dict(model.named_buffers())
        for name, value in dump["buffers"].items():
            buffers[name].copy_(value)
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"the state in {path} does not fit the network of its config (or of --cfg-options): {text}") from error
    return model


def _autocast(config: Config, device: torch.device) -> Any:
    """The mixed precision of the run's optimizer wrapper."""
    wrapper = config.get("optim_wrapper") or {}
    kind = str(wrapper.get("type")).rpartition(".")[2]
    if kind == "CpuAmpOptimWrapper":
        return torch.autocast(device.type, torch.bfloat16)
    if kind == "AmpOptimWrapper":
        dtype = wrapper.get("dtype")
        return torch.autocast(device.type, torch.float16 if dtype is None else getattr(torch, str(dtype).rpartition(".")[2]))
    return nullcontext()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value.detach()).all())


def _watch(result: Replay, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook: looks at a module's output, and at its gradient when the backward pass comes there."""
    for value in _tensors(output):
        if result.bad_forward is None and not _is_finite(value):
            result.bad_forward = result._named(name)
        if value.requires_grad:
            value.register_hook(partial(_watch_gradient, result, name))


def _watch_gradient(result: Replay, name: str, gradient: Tensor) -> None:
    if result.bad_backward is None and not _is_finite(gradient):
        result.bad_backward = result._named(name)


def replay(
    path: str | Path,
    options: Mapping[str, object] | None = None,
    device: str | None = None,
    trust: bool = False,
) -> Replay:
    """Run a step again: forward and backward pass.

    The dump is read as data, its config is a dictionary, and MMEngine's registries build what they know; nothing is imported
    that the file names, unless it is trusted.

    Args:
        path: the dump.
        options: keys of the config with dots, and their values.
        device: 'cpu', 'cuda', ...; None: where it was recorded, if there is one, else the CPU.
        trust: import what the config asks for, which runs its code.

    Raises:
        CheckpointError: the file is no dump, or damaged.
        ConfigError: the network cannot be built.
        ValueError: the config asks for code that is not trusted, the state does not fit, or the batch was not kept in full.
    """
    dump = read_dump(path)
    config = Config(dump["config"])
    merge_options(config, options or {})
    if not trust:
        _refuse_foreign_code(config, path)
    if config.get("custom_imports"):
        with config_errors(config, key="custom_imports"):
            import_modules_from_strings(**config.custom_imports)
    with preserved_rng(), nullcontext() if trust else registered_types_only():
        model = _build(dump, config, path)
    recorded = dump["device"] if dump["device"] == "cpu" or torch.cuda.is_available() else "cpu"
    where = torch.device(device or recorded)
    model.to(where)
    if where.type == "cpu":
        model = revert_sync_batchnorm(model)
    # a layer that is frozen in training sees to it by itself
    model.train()
    result = Replay(dump, str(where), kinds={name: type(module).__name__ for name, module in model.named_modules()})
    result.bad_inputs += [name for name, value in dump["state_dict"].items() if any(not _is_finite(v) for v in _tensors(value))]
    for name, module in model.named_modules():
        # the network as a whole gives the loss terms
        module.register_forward_hook(partial(_watch, result, name))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(dump.get("threads") or threads)
        with preserved_rng():
            for record in dump["iterations"]:
                _run(result, model, record, config, where)
    finally:
        torch.set_num_threads(threads)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.detach().float()
            result.gradients[name] = float(torch.linalg.vector_norm(gradient)), float(gradient.abs().max())
    return result


def _run(result: Replay, model: Any, record: dict[str, Any], config: Config, device: torch.device) -> None:
    """One iteration: as ``BaseModel.train_step``, without the step."""
    batch = rebuilt(record["batch"])
    if any(not _is_finite(value) for value in _tensors(batch)):
        result.bad_inputs.append(f"the batch of iteration {record['iteration']}")
    # models may look at it
    MessageHub.get_current_instance().update_info("iter", record["iteration"] - 1)
    set_rng_state(record["rng"])
    with _autocast(config, device):
        data = model.data_preprocessor(batch, True)
        losses = model(**data, mode="loss") if isinstance(data, dict) else model(*data, mode="loss")
    total, log_vars = model.parse_losses(losses)
    result.losses.append({name: float(value.detach()) for name, value in log_vars.items() if "loss" in name})
    if total.requires_grad:
        (total / record["divisor"]).backward()
