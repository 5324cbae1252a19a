"""Whether the keys of a config mean something, and the types and arguments in it are known. Nothing is built."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOG_PROCESSORS, LOOPS, METRICS, VISBACKENDS, VISUALIZERS, Registry

from gbseg.doctor.finding import ERROR, WARNING, Finding
from gbseg.doctor.remedy import remedied
from gbseg.mm.component_errors import missing_packages, wrong_arguments, wrong_type, wrong_values
from gbseg.mm.config import config_warnings

__all__ = ["check_settings"]


def check_settings(config: Config) -> Iterator[Finding]:
    """Look for misspelt names, unknown types and arguments, missing packages and impossible lengths.

    The parts that `gbseg.doctor.model_checks.check_model` and `gbseg.doctor.dataset_checks.check_data` build are left to them.
    """
    for text, remedy in config_warnings(config):
        yield Finding(WARNING, "config", text, remedy)
    for text, remedy in wrong_values(config):
        yield Finding(ERROR, "config", text, remedy)
    missing = list(missing_packages(config))
    # what is said begins with the backend's key
    absent = [text.partition(":")[0] for text, _ in missing]
    for text, remedy in missing:
        backends = config.visualizer.vis_backends
        left = [backend for index, backend in enumerate(backends) if f"visualizer.vis_backends[{index}]" not in absent]
        change = ("visualizer.vis_backends", left)
        yield remedied(config, ERROR, "config", text, remedy.removesuffix("."), change)
    for key, registry, settings, added in _components(config):
        scope = _keyed(settings).get("_scope_")
        with nullcontext() if registry is None else registry.switch_scope_and_registry(scope) as scoped:
            problem = wrong_type(scoped, settings) or wrong_arguments(scoped, settings, added, config)
        if problem is not None:
            yield Finding(ERROR, "config", f"{key}: {problem}", f"correct {key}.")


def _components(config: Config) -> Iterator[tuple[str, Registry | None, Any, tuple[str, ...]]]:
    """Key, registry, settings, and the arguments that the runner adds or takes out, of the parts that a runner builds."""
    hooks = {f"default_hooks.{name}": hook for name, hook in _keyed(config.get("default_hooks")).items()}
    for key, hook in {**hooks, **_listed("custom_hooks", config)}.items():
        if hook is not None:
            yield key, HOOKS, hook, ("priority",)
    training = _keyed(config.get("train_cfg"))
    if "by_epoch" in training:
        training = {"type": "EpochBasedTrainLoop" if training["by_epoch"] else "IterBasedTrainLoop", **training}
    if training:
        yield "train_cfg", LOOPS, training, ("runner", "dataloader", "by_epoch")
    for split, loop in (("val", "ValLoop"), ("test", "TestLoop")):
        if settings := _keyed(config.get(f"{split}_cfg")):
            yield f"{split}_cfg", LOOPS, {"type": loop, **settings}, ("runner", "dataloader", "evaluator")
        for key, metric in _listed(f"{split}_evaluator", config).items():
            if metric and "metrics" not in _keyed(metric):
                yield key, METRICS, metric, ()
    for split in ("train", "val", "test"):
        if loader := _keyed(config.get(f"{split}_dataloader")):
            yield f"{split}_dataloader", None, loader, ()
            for key, added in (("sampler", ("dataset", "seed")), ("batch_sampler", ("sampler", "batch_size"))):
                if loader.get(key) is not None:
                    yield f"{split}_dataloader.{key}", DATA_SAMPLERS, loader[key], added
    if visualizer := _keyed(config.get("visualizer")):
        yield "visualizer", VISUALIZERS, {"type": "Visualizer", **visualizer}, ("name", "save_dir")
        for index, backend in enumerate(visualizer.get("vis_backends") or []):
            yield f"visualizer.vis_backends[{index}]", VISBACKENDS, backend, ("save_dir",)
    if processor := _keyed(config.get("log_processor")):
        yield "log_processor", LOG_PROCESSORS, {"type": "LogProcessor", **processor}, ()


def _keyed(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(key: str, config: Config) -> dict[str, Any]:
    """The parts under a key that holds one or a list of them."""
    value = config.get(key)
    if isinstance(value, list | tuple):
        return {f"{key}[{index}]": part for index, part in enumerate(value)}
    return {} if value is None else {key: value}
