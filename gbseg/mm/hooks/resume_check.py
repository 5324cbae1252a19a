"""The hook that compares a checkpoint with the run that resumes from it, and says what is kept and what is rebuilt."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from gbseg.mm.checkpoint_files import require_resumable
from gbseg.mm.checkpoint_weights import keep_fitting, require_weights, warn_of_mismatches
from gbseg.mm.compat import checkpoint_to_load, resumes
from gbseg.mm.config_difference import Change, config_changes, plain_config, stored_config
from gbseg.mm.resume_changes import Rebuilt, rebuild_schedule, schedulers_of

__all__ = ["ResumeCheckHook"]


@HOOKS.register_module()
class ResumeCheckHook(Hook):
    """Compares a checkpoint with the config when a training is resumed; every run of ``gbseg train`` has it.

    * Another network, number of classes or boost is refused, unless the config has ``allow_mismatch=True``.
    * What else differs is logged once, each difference with what becomes of it (`gbseg.mm.resume_changes`).
    * Where the optimizer's settings or the schedules differ, the rate is that of a run with this config from its beginning.

    Raises:
        gbseg.mm.checkpoint_weights.MismatchError: as above.
    """

    # before any other hook takes something of the checkpoint
    priority = "HIGHEST"

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at what is about to be resumed."""
        if not resumes(runner) or not isinstance(runner, Runner):
            return
        path = checkpoint_to_load(runner)
        require_resumable(checkpoint, path)
        if runner.cfg.get("allow_mismatch"):
            warn_of_mismatches(runner.model, checkpoint, path, runner.cfg, training=True)
            keep_fitting(runner.model, checkpoint)
        else:
            require_weights(runner.model, checkpoint, path, runner.cfg, training=True)
        old = stored_config(checkpoint)
        changes = [] if old is None else config_changes(old, plain_config(runner.cfg))
        rebuilt = rebuild_schedule(runner, checkpoint, old, changes)
        meta = checkpoint["meta"]
        unit, done, length = "iteration", meta["iter"], runner.max_iters
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            unit, done, length = "epoch", meta["epoch"], runner.max_epochs
        end = ", so this run is finished" if done >= length else ""
        runner.logger.info(f"Resuming from {path}: {unit} {done} of {length} is done{end}.")
        if old is None:
            runner.logger.info("The checkpoint holds no config that can be read, so what has changed in it is not known.")
        _log(runner, changes, rebuilt, meta["iter"])


def _log(runner: Runner, changes: list[Change], rebuilt: Rebuilt, iteration: int) -> None:
    lines = [f"  {change} ({_what_happens(change.key, rebuilt)})" for change in changes]
    lines += [f"  {text} (it ended there with the training, and its rate would stay 0)" for text in rebuilt.extended]
    if not lines and not rebuilt.schedule:
        return
    text = "\n".join(["Since the checkpoint was written, the config has changed:", *lines] if lines else [])
    kept = f"weights that fit, iteration {iteration}, random states and the position in the data"
    if not rebuilt.schedule:
        text += f"\nKept: {kept}, the optimizer's state and settings, and the schedules."
    else:
        before, now = ("none" if rate is None else f"{rate:g}" for rate in rebuilt.rates)
        kept += "" if rebuilt.anew else " and the optimizer's state (momentum, moments, step counts)"
        anew = f" The optimizer's state starts anew: {rebuilt.anew}." if rebuilt.anew else ""
        if any(getattr(schedule, "need_val_args", False) for schedule in schedulers_of(runner.param_schedulers)):
            anew += " What ReduceOnPlateau knows of earlier validations starts anew as well."
        text += (
            f"\nKept: {kept}. Rebuilt from the config: the optimizer's settings and the schedules, as in a run that had this "
            f"config from its beginning; the rate is {now} now, {before} in the checkpoint.{anew}"
        )
    runner.logger.warning(text.strip())


def _what_happens(key: str, rebuilt: Rebuilt) -> str:
    """What becomes of a key that has changed."""
    top = key.partition(".")[0].partition("[")[0]
    if key == "randomness.seed":
        return "kept: the checkpoint's seed and random states"
    if top == "param_scheduler" or key.startswith(("auto_scale_lr", "train_cfg.max_")):
        return "rebuilt: the schedule" if rebuilt.schedule else "the config's; the schedule is the same"
    if top == "optim_wrapper" and (".optimizer" in key or ".paramwise_cfg" in key or ".constructor" in key):
        return (
            "rebuilt: the optimizer, its state anew" if rebuilt.anew else "rebuilt: the optimizer's settings; its state is kept"
        )
    if top in ("model", "data_preprocessor"):
        return "the network is the config's, with the weights that fit"
    return "the config's from here on"
