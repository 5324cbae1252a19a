"""What mmengine says at the start of a run goes to the log file alone: hundreds of lines would hide the few that matter."""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner

__all__ = ["TerseRunner"]

# beginnings of messages: the environment, the config, the hooks, and advice about mmengine's own names
_FILE_ONLY = (
    "\n----",
    "Config:\n",
    "Hooks will be executed",
    "Distributed training is not used",
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "paramwise_options -- ",
    "Exp name: ",
    "Loads checkpoint by",
)
_ENDINGS = ("is skipped since its requires_grad=False",)


class _Terse(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return record.levelno > logging.WARNING or not (message.startswith(_FILE_ONLY) or message.endswith(_ENDINGS))


class TerseRunner(Runner):
    """mmengine's `Runner`, which tells the terminal where the log is instead of repeating config and environment there."""

    @master_only
    def dump_config(self) -> None:
        """Write the config of a training to the work dir; that of a test beside its log, so that it replaces no training's."""
        if self.cfg.get("train_cfg") is not None:
            super().dump_config()
            return
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(str(folder / Path(self.cfg.filename or "test.py").name))

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: object) -> MMLogger:
        """mmengine's logger, whose handler for the terminal leaves out what only a log file needs."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # of several processes only the first one has a file
                logger.info(f"Config, versions and everything that follows are logged in {handler.baseFilename}")
            else:
                handler.addFilter(_Terse())
        return logger
