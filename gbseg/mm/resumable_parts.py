"""What `gbseg.mm.training.train` puts in place of MMEngine's stock loops and samplers, so that a run resumes exactly."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS, DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler

from gbseg.mm.hooks.checkpoint import DurableCheckpointHook
from gbseg.mm.loops import ResumableEpochLoop, ResumableIterLoop
from gbseg.mm.resumable_sampler import ResumableSampler

__all__ = ["not_resumable", "use_resumable_parts"]

_LOOPS = {
    EpochBasedTrainLoop: ResumableEpochLoop,
    IterBasedTrainLoop: ResumableIterLoop,
    ResumableEpochLoop: ResumableEpochLoop,
    ResumableIterLoop: ResumableIterLoop,
}
_SAMPLERS = (DefaultSampler, InfiniteSampler, ResumableSampler)


def _kind(registry: Registry, settings: Any, scope: str) -> Any:
    """The class that a part of a config names, None if there is none of that name, or no settings."""
    kind = settings.get("type") if isinstance(settings, Mapping) else None
    if not isinstance(kind, str):
        return kind
    with DefaultScope.overwrite_default_scope(scope):
        return registry.get(kind)


def _loop(config: Config, scope: str) -> Any:
    settings = config.get("train_cfg") or {}
    if "type" not in settings and "by_epoch" in settings:
        return EpochBasedTrainLoop if settings["by_epoch"] else IterBasedTrainLoop
    return _kind(LOOPS, settings, scope)


def _name(kind: Any, settings: Any) -> str:
    return getattr(kind, "__name__", None) or str(
        settings.get("type") if isinstance(settings, Mapping) else type(settings).__name__
    )


def not_resumable(config: Config) -> Iterator[str]:
    """The loop, samplers and other parts of a config with which a run does not resume exactly.

    Yields:
        A key of the config, and what it names: parts of other authors.
    """
    scope, loader = config.get("default_scope", "mmengine"), config.get("train_dataloader")
    if "runner_type" in config:
        yield f"runner_type is {config.runner_type}"
    if (loop := _loop(config, scope)) not in _LOOPS:
        yield f"train_cfg.type is {_name(loop, config.get('train_cfg'))}"
    if not isinstance(loader, Mapping):
        yield f"train_dataloader is a {type(loader).__name__}"
        return
    sampler = _kind(DATA_SAMPLERS, loader.get("sampler"), scope)
    if sampler not in _SAMPLERS:
        yield f"train_dataloader.sampler.type is {_name(sampler, loader.get('sampler'))}"
    batches = loader.get("batch_sampler")
    if batches is not None and _kind(DATA_SAMPLERS, batches, scope) is not BatchSampler:
        yield f"train_dataloader.batch_sampler.type is {_name(None, batches)}"


def use_resumable_parts(config: Config, loop_and_sampler: bool = True) -> list[str]:
    """Put gbseg's loop, sampler and checkpoint hook in place of MMEngine's, in place.

    Only what does the same, and resumes exactly, takes the place of something: a config with a loop or sampler of another
    author (`not_resumable`) keeps both. In a loop over iterations, ``DefaultSampler`` begins a batch anew with each epoch, and
    ``ResumableSampler`` does not.

    Args:
        config: of one run.
        loop_and_sampler: whether to replace these; if not, the checkpoint hook alone.

    Returns:
        What was replaced, ``'<key>: <old> -> <new>'``.
    """
    replaced = []
    scope = config.get("default_scope", "mmengine")
    if loop_and_sampler and not any(not_resumable(config)):
        old = _loop(config, scope)
        new = _LOOPS[old]
        if old is not new:
            config.train_cfg.pop("by_epoch", None)
            config.train_cfg.type = new.__name__
            replaced.append(f"train_cfg: {old.__name__} -> {new.__name__}")
        sampler = config.train_dataloader.sampler
        old = _kind(DATA_SAMPLERS, sampler, scope)
        if old is not ResumableSampler:
            sampler.type = ResumableSampler.__name__
            replaced.append(f"train_dataloader.sampler: {old.__name__} -> {ResumableSampler.__name__}")
    hooks = config.get("default_hooks") or {}
    settings = hooks.get("checkpoint", {"type": "CheckpointHook", "interval": 1})
    # another file system has no atomic rename
    elsewhere = isinstance(settings, Mapping) and (settings.get("backend_args") or settings.get("file_client_args"))
    if _kind(HOOKS, settings, scope) is CheckpointHook and not elsewhere and "runner_type" not in config:
        keep = {"max_keep_ckpts": 2 if settings.get("max_keep_ckpts") == 1 else settings.get("max_keep_ckpts", -1)}
        config.default_hooks = {**hooks, "checkpoint": {**settings, "type": DurableCheckpointHook.__name__, **keep}}
        replaced.append(f"default_hooks.checkpoint: CheckpointHook -> {DurableCheckpointHook.__name__}")
    return replaced
