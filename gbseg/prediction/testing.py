"""Test a checkpoint: its scores, its predictions as indexed PNGs, and pictures of them."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from gbseg.files import checkpoint_path, require_folder
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.checkpoint_weights import require_weights, warn_of_mismatches
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import default_work_dir
from gbseg.mm.models.link_tta import enable_tta
from gbseg.mm.report_metric import add_voc_metric, voc_metrics
from gbseg.mm.training import build_runner
from gbseg.prediction.submission import prepare_submission

__all__ = ["test"]


def test(
    config: Config,
    checkpoint: Path | str,
    out: Path | str | None = None,
    show_dir: Path | str | None = None,
    work_dir: Path | str | None = None,
    amp: bool = False,
    launcher: str = "none",
    report: bool = True,
    ci: int | bool = False,
    calibration: bool = False,
    tta: bool = False,
    submit: Path | str | None = None,
    submit_list: str | None = None,
    command: str | None = None,
    allow_mismatch: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Args:
        config: config of one run.
        checkpoint: file with the weights; mmengine's file ``last_checkpoint`` stands for the one that it names.
        out: folder for every prediction as an indexed PNG of the image's original size.
        show_dir: folder for pictures of image, ground truth and prediction side by side.
        work_dir: folder of the log; by default ``work_dirs/<name of the config>``.
        amp: predict in mixed precision.
        launcher: as for mmengine's ``Runner``.
        report: write scores.json, confusion.png and report.html to ``work_dir/test_<stem of the checkpoint>``, followed by
            ``_tta`` with test-time augmentation (see `gbseg.mm.hooks.report_hook.ReportHook`), if the test evaluator is a
            ``VOCMetric``, or an ``IoUMetric`` (see `gbseg.mm.report_metric.add_voc_metric`), and the set has labels.
        ci: number of bootstrap resamples for confidence intervals over images, True for 2,000.
        calibration: compute the expected calibration error, and draw its diagram in the report; without ``report``, only
            scores.json and reliability.png are written.
        tta: average probabilities over scales and flips, see `gbseg.mm.models.link_tta.enable_tta`.
        submit: predict VOC's test list, without labels, and pack this archive for its evaluation server; nothing is scored.
        submit_list: the list to predict instead, see `gbseg.prediction.submission.prepare_submission`.
        command: the command line, for the provenance.
        allow_mismatch: take what fits of a checkpoint of another network or boost, as the config's key of this name.

    Returns:
        The scores by name, in percent; none with ``submit``.

    Raises:
        ConfigError: a part of the config cannot be built; the message names it.
        FileNotFoundError: there is no such checkpoint, or `gbseg.prediction.submission.prepare_submission` misses a file.
        gbseg.mm.checkpoint_loading.CheckpointError: the checkpoint is damaged, or holds more than data.
        gbseg.mm.checkpoint_weights.MismatchError: the checkpoint is of another network, number of classes or boost.
        ValueError: the config lists several runs; the metric cannot write predictions,
            intervals or calibration; options of segmentation are given for a classifier; or
            `gbseg.prediction.submission.prepare_submission` refuses the config.
        gbseg.evaluation.submission_archive.SubmissionError: the predictions are no valid submission.
    """
    if config.get("runs"):
        raise ValueError(f"{config.filename} lists the runs {', '.join(config.runs)}: test one of them by its own config.")
    checkpoint = checkpoint_path(checkpoint)
    options = {"--out": out, "--show-dir": show_dir, "--submit": submit, "--tta": tta, "--ci": ci, "--calibration": calibration}
    if config.get("default_scope") == "mmpretrain" and (given := [option for option, value in options.items() if value]):
        raise ValueError(f"{', '.join(given)}: of segmentation; a classifier is tested for what its test_evaluator computes.")
    work_dir = Path(work_dir or default_work_dir(config))
    for folder in (work_dir, out, show_dir):
        require_folder(Path(folder) if folder is not None else None)
    config = copy.deepcopy(config)
    with config_errors(config):
        model = config.model
        if tta:
            enable_tta(config)
        if submit is not None:
            submission = prepare_submission(config, submit, submit_list, out, work_dir)
        added = add_voc_metric(config, out is not None) if report or ci or calibration or out is not None else None
        metrics = voc_metrics(config)
        if out is not None and submit is None:
            if not metrics:
                raise ValueError("--out needs a VOCMetric or IoUMetric as test_evaluator: others write no indexed PNGs.")
            metrics[0]["out_dir"] = str(out)
        if show_dir is not None:
            config.custom_hooks = [*config.get("custom_hooks", []), dict(type="OverlayHook", out_dir=str(show_dir))]
        if amp:
            config.test_cfg.fp16 = True
        size = (model.get("test_cfg") or {}).get("input", "original") if model.type == "PixelNet" else None
        evaluator = next((metric for metric in metrics if not metric.get("format_only")), None)
        if ci or calibration:
            if evaluator is None:
                raise ValueError(
                    "--ci and --calibration need a VOCMetric or IoUMetric as test_evaluator, and a set with labels."
                )
            if ci < 0:
                raise ValueError(f"--ci is a number of bootstrap resamples, e.g. 2000, not {ci}.")
            evaluator.ci = ci
        report_dir = None
        if evaluator is not None and (report or calibration):
            report_dir = work_dir / f"test_{Path(checkpoint).stem}{'_tta' if tta else ''}"
            facts = {"config": str(config.filename), "checkpoint": str(checkpoint)}
            if size is not None:
                facts["network input"] = size if size == "original" else "{} x {}".format(*size)
            if tta:
                facts["test-time augmentation"] = "mean probabilities over scales and flips"
            hook = dict(type="ReportHook", out_dir=str(report_dir), calibration=calibration, facts=facts, command=command)
            hook |= dict(name=f"{Path(config.filename or 'run').stem} {Path(checkpoint).stem}", page=report)
            config.custom_hooks = [*config.get("custom_hooks", []), hook]
        # nothing for training and validation is built
        training = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler")
        config.update(dict.fromkeys((*training, "val_dataloader", "val_cfg", "val_evaluator")))
    runner = build_runner(config, work_dir, launcher=launcher, load_from=str(checkpoint), resume=False)
    if added is not None:
        runner.logger.info(added)
    # mmengine only warns of missing weights, and would score the network with random ones
    stored = read_checkpoint(checkpoint)
    if allow_mismatch or config.get("allow_mismatch"):
        warn_of_mismatches(runner.model, stored, checkpoint, config)
    else:
        require_weights(runner.model, stored, checkpoint, config)
    del stored
    if submit is not None:
        submission.clear()
    with config_errors(config, only_building=True):
        scores = runner.test()
    if submit is not None:
        submission.pack()
    if size is not None and submit is None:
        scaled = " times the scales of the augmentation" if tta else ""
        runner.logger.info(f"Network input: {size}{scaled}; labels compared at the images' original size.")
    for name, folder in (("Predictions", out), ("Pictures", show_dir)):
        if folder is not None:
            print(f"{name} are in {folder}")
    if report_dir is not None and is_main_process():
        page = f"The report is {report_dir / 'report.html'} (also scores.json and figures)"
        print(page if report else f"scores.json and reliability.png are in {report_dir}")
    return scores
