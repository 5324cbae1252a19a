"""mmengine's runner, less talkative at its start, and able to train by several processes without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from mmengine.dist import is_distributed, master_only
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

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
    """mmengine's `Runner`, which tells the terminal where the log is instead of repeating config and environment there.

    Hundreds of lines would hide the few that matter. Under torchrun it works on machines without a GPU as well, by gloo.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """mmengine's, which asks for a GPU as soon as there are several processes."""
        if self._launcher == "pytorch" and not torch.cuda.is_available() and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """mmengine's, without the device number that a model on a CPU must not be given."""
        if not self.distributed or torch.cuda.is_available() or model_wrapper_cfg is not None or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(module=model, broadcast_buffers=False, find_unused_parameters=unused)

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
