"""mmengine's runner, with a quiet terminal, and able to train by several processes without a GPU."""

import io
import logging
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import init_dist, is_distributed, master_only
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import find_latest_checkpoint
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from gbseg.errors import is_refusal
from gbseg.mm.checkpoint_files import require_resumable
from gbseg.mm.checkpoint_loading import CheckpointError
from gbseg.mm.checkpoint_weights import mismatches, require_some_weights, weights_table
from gbseg.mm.compat import QuietTerminal, build_steps, checkpoint_to_load, resume_from, resumes
from gbseg.mm.fully_shard import ShardedRunner
from gbseg.mm.process_group import lost_process_errors, process_group_options

__all__ = ["QuietRunner", "init_processes"]


def init_processes(launcher: str, env_cfg: Mapping[str, Any]) -> None:
    """Let the processes of a launcher find each other, as mmengine's runner does, and with gloo where there is no GPU.

    Args:
        launcher: as ``mmengine.runner.Runner`` takes it.
        env_cfg: the config's.
    """
    if launcher == "none" or is_distributed():
        return
    settings = dict(env_cfg.get("dist_cfg") or {})
    if launcher == "pytorch":
        options = process_group_options(settings.get("timeout"))
        if not torch.cuda.is_available():
            with lost_process_errors():
                torch.distributed.init_process_group("gloo", **options)
            return
        if "store" in options:
            # mmengine reads the time-out itself
            options.pop("timeout", None)
            settings |= options
    set_multi_processing(**env_cfg.get("mp_cfg", {}), distributed=True)
    init_dist(launcher, **settings)


class QuietRunner(ShardedRunner):
    """mmengine's ``Runner``, which keeps config and environment off the terminal and names the log file there instead.

    Under torchrun it also works on machines without a GPU, with gloo, and with models that are sharded by
    `gbseg.mm.fully_shard`.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """mmengine's, which needs a GPU as soon as there are several processes, and meets dead ones after a restart."""
        init_processes(self.launcher, env_cfg)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """mmengine's, but without ``device_ids`` on a CPU, where DistributedDataParallel refuses them."""
        if not self.distributed or torch.cuda.is_available() or model_wrapper_cfg is not None or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(module=model, broadcast_buffers=False, find_unused_parameters=unused)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """mmengine's, which only warns where no weight fits.

        Raises:
            ValueError: nothing in the checkpoint is of this network.
            CheckpointError: training cannot be resumed from it, where it is to be.
        """
        is_resumed, is_training = resumes(self), self.cfg.get("train_cfg") is not None
        # mmengine prints here, tensor by tensor, what the table below counts
        with redirect_stdout(io.StringIO()) if is_training else nullcontext():
            stored: dict[str, Any] = super().load_checkpoint(filename, *args, **kwargs)
        # with other rules for the names, theirs are not those of the file
        if len(args) < 3 and "revise_keys" not in kwargs:
            require_some_weights(self.model, stored, filename)
            if is_training and not is_resumed:
                self._say_what_was_loaded(stored, filename)
        if is_resumed:
            require_resumable(stored, filename)
        return stored

    def _say_what_was_loaded(self, stored: dict[str, Any], filename: str) -> None:
        """Log the table of a fine-tuning's weights, and where they come from another boost."""
        self.logger.info(f"Weights of {filename}: {weights_table(self.model, stored)}")
        for text in mismatches(self.model, stored, self.cfg, training=True)[1]:
            self.logger.warning(f"{filename} was trained with another boost, from which this run starts: {text}.")

    def load_or_resume(self) -> None:
        """mmengine's, which raises anything at a checkpoint whose content it does not expect.

        Raises:
            CheckpointError: the checkpoint does not fit; the message names it.
        """
        if resumes(self) and checkpoint_to_load(self) is None:
            # `DurableCheckpointHook` has looked for one and said so; this is for MMEngine's own
            resume_from(self, find_latest_checkpoint(self.work_dir))
            if not resumes(self):
                self.logger.info(f"There is no checkpoint in {self.work_dir} yet: training starts at the beginning.")
        try:
            super().load_or_resume()
        except Exception as error:
            path, (methods, components) = checkpoint_to_load(self), build_steps(error)
            # what is built meanwhile, such as the optimizer, is of the config
            of_config = components or set(methods) != {"load_or_resume"}
            if path is None or of_config or is_refusal(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(path, f"loading it into this run fails with {type(error).__name__}: {text}") from error

    @master_only
    def dump_config(self) -> None:
        """Write the config of a training to the work dir, that of a test to its log folder, so that it replaces no other."""
        if self.cfg.get("train_cfg") is not None:
            super().dump_config()
            return
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(str(folder / Path(self.cfg.filename or "test.py").name))

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: object) -> MMLogger:
        """mmengine's logger, whose terminal handler leaves out what only a log file needs."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # in distributed runs, only rank 0 has a log file
                logger.info(f"Config, versions and everything that follows are logged in {handler.baseFilename}")
            else:
                handler.addFilter(QuietTerminal())
        return logger
