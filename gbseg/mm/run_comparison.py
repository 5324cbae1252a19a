"""Compare the runs of a config: a table, their curves, and their predictions side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope

from gbseg.mm.checkpoint_files import newest_readable_checkpoint
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.checkpoint_weights import load_weights
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import max_pixels, run_configs
from gbseg.mm.datasets.sample_checks import check_samples
from gbseg.report.comparison_table import compare
from gbseg.report.label_overlay import prediction_sheet

__all__ = ["compare_runs", "draw_predictions"]


def draw_predictions(runs: dict[str, tuple[Config, Path]], images: Sequence[int] | int, path: Path) -> None:
    """Draw validation images with their ground truth and the prediction of every run.

    Args:
        runs: config and folder of each run by name; the newest checkpoint of each is used.
        images: indices in the validation set, or a number of images, taken at equal distances.
        path: the PNG to write.

    Raises:
        gbseg.mm.checkpoint_weights.MismatchError: a checkpoint is of another network or boost than its run's config now.
    """
    config = next(iter(runs.values()))[0]
    init_default_scope(config.get("default_scope", "mmseg"))
    with config_errors(config):
        dataset = DATASETS.build(config.val_dataloader.dataset)
        check_samples(dataset, max_pixels(config), config.model.get("decode_head"))
    if isinstance(images, int):
        images = [int(index) for index in np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round()]
    rows = []
    for index in images:
        sample = dataset[index]["data_samples"]
        rows.append([cv2.imread(sample.img_path), sample.gt_sem_seg.data[0].numpy().astype(np.uint8)])
    drawn: list[str] = []
    for name, (config, folder) in runs.items():
        checkpoint = newest_readable_checkpoint(folder)
        if checkpoint is None:
            print(f"The run {name} has no checkpoint in {folder}, so its predictions are not drawn.")
            continue
        drawn.append(name)
        with config_errors(config):
            model = MODELS.build(config.model).to(get_device())
        load_weights(model, read_checkpoint(checkpoint), checkpoint, config, config.get("allow_mismatch", False))
        model.eval()
        for row, index in zip(rows, images, strict=True):
            with torch.no_grad():
                (result,) = model.test_step(pseudo_collate([dataset[index]]))
            row.append(result.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8))
    prediction_sheet(rows, ["image", "ground truth", *drawn], path, class_names=dataset.metainfo["classes"])


def compare_runs(config: Config, work_dir: Path | str) -> None:
    """Write and print the comparison of a config's runs, from their logs and checkpoints in ``work_dir``.

    Beside table and figures it writes ``provenance.json``, with that of every run by name.

    ``config.compare`` has ``metric`` (a key of the validation), ``baseline`` (the name of a run), and may have
    ``lower_is_better`` (for an error or a loss), ``epoch_length`` (iterations per epoch, for the table) and ``images`` (see
    `draw_predictions`; by default 4 for segmentors, whose models have a ``decode_head``, and none for classifiers).

    Raises:
        ValueError: the config lists no runs to compare, or `gbseg.report.comparison_table.compare` raises.
    """
    if not config.get("runs") or "compare" not in config:
        raise ValueError(f"{config.filename} lists no runs to compare (keys runs and compare; see configs/demo_expgb.py).")
    work_dir = Path(work_dir)
    runs = run_configs(config, work_dir)
    settings = config.compare
    segments = all("decode_head" in run_config.model for run_config, _ in runs.values())
    images = settings.get("images", 4 if segments else 0)
    if images and not segments:
        # no reason to fail after the training
        print("compare.images is left out: it draws label maps, and not every run predicts any.")
        images = 0
    folders = {name: folder for name, (_, folder) in runs.items()}
    options = {key: settings[key] for key in ("epoch_length", "lower_is_better") if key in settings}
    result = compare(folders, work_dir, settings.metric, settings.baseline, **options)
    records = {name: json.loads((folder / "provenance.json").read_text()) for name, folder in folders.items()}
    (work_dir / "provenance.json").write_text(json.dumps(records, indent=2) + "\n")
    if images:
        draw_predictions(runs, images, work_dir / "predictions.png")
    print(f"\n{result.table()}\n")
    print(f"The curves are in      {work_dir / 'curve.png'}")
    if images:
        print(f"Predictions are in     {work_dir / 'predictions.png'}")
    print(f"The table is in        {work_dir / 'comparison.md'} (also .csv and .json)")
