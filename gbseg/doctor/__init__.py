"""Checks of a config before it trains: packages, data, labels, model, losses, rate. Nothing is trained, no GPU needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.text import Text

import gbseg.mm  # noqa: F401  (registers everything, so that a missing custom_imports is told from a wrong name)
from gbseg.doctor.dataset_checks import check_data, data_of
from gbseg.doctor.finding import ERROR, LEVELS, Finding
from gbseg.doctor.model_checks import check_model
from gbseg.doctor.package_checks import check_packages
from gbseg.doctor.remedy import base_name, config_lines
from gbseg.doctor.schedule_checks import check_schedule
from gbseg.doctor.setting_checks import check_settings
from gbseg.mm.component_errors import build_error
from gbseg.mm.config import run_configs

__all__ = ["Finding", "examine", "report"]

_STYLES = dict(zip(LEVELS, ("green", "cyan", "yellow", "bold red"), strict=True))


def examine(config: Config, every: bool = False) -> Iterator[Finding]:
    """Check a config; if it lists ``runs``, each of them.

    Args:
        config: from `gbseg.mm.config.load_config`.
        every: read all images and masks, not only a sample.
    """
    yield from check_packages()
    # without the changes, which may hold dicts
    seen: set[tuple] = set()
    checked_data: set[str] = set()

    def check_new_data(run_config: Config) -> Iterator[Finding]:
        data = repr(data_of(run_config))
        if data not in checked_data:
            checked_data.add(data)
            yield from check_data(run_config, every, config.get("prepare"))

    checks = {"config": check_settings, "model": check_model, "schedule": check_schedule, "data": check_new_data}
    for name, (run_config, _) in run_configs(config, Path()).items():
        init_default_scope(run_config.get("default_scope") or "mmseg")
        for where, check in checks.items():
            for finding in _complete(where, check, run_config):
                # runs share most of their findings
                if finding[:4] not in seen:
                    seen.add(finding[:4])
                    # the lines are for the config of this run
                    yield finding._replace(where=f"{name}: {finding.where}", changes=()) if name else finding


def _complete(where: str, check: Callable[[Config], Iterator[Finding]], config: Config) -> Iterator[Finding]:
    """The findings of a check; where the config is so wrong that it stops, this is one."""
    try:
        yield from check(config)
    # any exception: it means that a value is not of the kind that training needs
    except Exception as error:
        yield Finding(ERROR, where, build_error(error, config), "correct the value, or run the training, which names it.")


def report(config: Config, every: bool = False) -> int:
    """Print the findings on a config as they come, how many there are of each level, and the remedies as one config.

    Args:
        config: from `gbseg.mm.config.load_config`.
        every: read all images and masks, not only a sample.

    Returns:
        1 if there is an error among them, else 0.
    """
    console = Console(highlight=False, soft_wrap=True)
    counts = dict.fromkeys(LEVELS, 0)
    changes: list[tuple[str, Any]] = []
    for finding in examine(config, every):
        counts[finding.level] += 1
        changes += finding.changes
        line = Text(f"{finding.level:>7}  ", _STYLES[finding.level])
        console.print(line.append(f"{finding.where}: {finding.text}", "default"))
        if finding.remedy:
            console.print(Text("         -> " + finding.remedy.replace("\n", "\n            "), "dim"))
    console.print(", ".join(f"{count} {level}{'s' * (level != 'ok' and count != 1)}" for level, count in counts.items()))
    if changes:
        console.print("\nRemedies are lines of a config that inherits this one. All of them, as a file for this folder:\n")
        # a long line stays one: it is to be copied
        console.print(Text(f"_base_ = [{base_name(config)!r}]\n{config_lines(config, changes)}"))
        if any(".loss_decode" in key or key == "custom_hooks" for key, _ in changes):
            console.print("\nOf a config made for a softmax, gbseg boost writes one in which losses, hooks and imports fit.")
    return int(counts[ERROR] > 0)
