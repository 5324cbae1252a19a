"""What mmengine says at the start of a run goes to the log file alone: hundreds of lines would hide the few that matter."""

from __future__ import annotations

import logging

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
)


class _Terse(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not record.getMessage().startswith(_FILE_ONLY)


class TerseRunner(Runner):
    """mmengine's `Runner`, which tells the terminal where the log is instead of repeating config and environment there."""

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
