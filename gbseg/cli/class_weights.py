"""Count the classes of a config's training masks, and write weights that make rare classes count more.

Example:
    gbseg class-weights gbseg::pixelnet_expgb.py weights.json
    gbseg train gbseg::pixelnet_expgb.py --cfg-options model.decode_head.loss_decode.class_weight=weights.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import add_config


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    parser.add_argument("out", type=Path, metavar="FILE", help="a .json or .npy with one number a class")
    help_text = "inverse: 1 / share of the pixels; median: median share / share, in the images that hold the class"
    parser.add_argument("--weighting", choices=("inverse", "median"), default="median", help=help_text)
    return _run


def _run(a: argparse.Namespace) -> None:
    import io
    import json

    import numpy as np
    from mmengine.registry import DATASETS, DefaultScope

    from gbseg.config_files import ConfigError
    from gbseg.files import write_atomically
    from gbseg.mm import load_config
    from gbseg.mm.component_errors import config_errors
    from gbseg.mm.datasets.label_counts import class_weights, count_labels, weights_table
    from gbseg.mm.datasets.sample_checks import check_samples
    from gbseg.mm.hooks.train_test_overlap import unwrap

    if a.out.suffix not in (".json", ".npy"):
        raise ValueError(f"{a.out}: weights are written as .json or .npy, which class_weight of a loss reads.")
    config = load_config(a.config, a.cfg_options)
    if not config.get("train_dataloader"):
        raise ConfigError(f"{a.config} has no train_dataloader, whose masks are counted.")
    with config_errors(config), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    # of repeated images, each counts once
    parts = list(unwrap(dataset))
    names = tuple((getattr(parts[0], "metainfo", None) or {}).get("classes") or ())
    if not names or any(not hasattr(part, "get_data_info") for part in parts):
        raise ConfigError(f"{a.config}: train_dataloader.dataset names no classes, or does not say where its masks are.")
    check_samples(dataset)
    counts = np.concatenate([count_labels(part, len(names)) for part in parts])
    weights = class_weights(counts, a.weighting)
    if a.out.suffix == ".json":
        content = (json.dumps(weights.tolist()) + "\n").encode()
    else:
        buffer = io.BytesIO()
        np.save(buffer, weights)
        content = buffer.getvalue()
    write_atomically(content, a.out)
    print(weights_table(names, counts, weights))
    print(f"Weights of {len(counts):,} masks are in {a.out}; give it to a loss as class_weight='{a.out}'.")
