"""The training loops: iterations or epochs that can be interrupted anywhere, and resumed bit for bit.

What happens on ``--resume``, step by step, is in the docstring of `gbseg.mm.training`.
"""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from gbseg.mm.compat import replace_dataset, update_val_interval
from gbseg.mm.resumable_sampler import ResumableSampler, SeededDataset
from gbseg.mm.rng import preserved_rng, rng_state, set_rng_state

__all__ = ["ResumableEpochLoop", "ResumableIterLoop"]


class _ResumableLoop:
    """What the loops below add to mmengine's: the position in the data, the random states, and a validation to make up for.

    Raises:
        TypeError: the sampler is not a ``ResumableSampler`` in an ordinary fixed-size ``BatchSampler``.
    """

    runner: Runner
    dataloader: DataLoader
    val_begin: int
    val_interval: int

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: Any, **settings: Any) -> None:
        if isinstance(dataloader, dict):
            # before the parent makes an iterator: persistent workers keep the data set with which they started
            dataloader = {**dataloader, "dataset": {"type": SeededDataset, "dataset": dataloader["dataset"]}}
        super().__init__(runner, dataloader, *args, **settings)  # type: ignore[call-arg]
        if not isinstance(dataloader, dict):
            replace_dataset(self.dataloader, SeededDataset(dataloader.dataset))
        batches = self.dataloader.batch_sampler
        if type(batches) is not BatchSampler or not isinstance(batches.sampler, ResumableSampler):
            raise TypeError(
                f"{type(self).__name__} needs train_dataloader = dict(sampler=dict(type='ResumableSampler'), ...) and no "
                f"batch_sampler of its own; got {type(getattr(batches, 'sampler', batches)).__name__}"
            )
        self._sampler = batches.sampler
        self._draws_per_iter = batches.batch_size * get_world_size()
        self._draws = 0
        self._resumed: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of this process for a checkpoint, after an iteration or during its validation.

        Returns:
            ``seed`` of the data stream, ``draws`` taken from it by all processes (of an epoch loop, in the epoch ``epoch``),
            ``size`` of the data set, ``validated`` (whether the validation of this iteration is over, except for hooks), and
            ``rng``.
        """
        return {
            "seed": self._sampler.seed,
            "draws": self._draws,
            "size": self._sampler.size,
            "validated": self._before_validation is not None,
            "rng": self._before_validation or rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a `state_dict`, which ``run`` then starts from. Without ``rng``, the random generators keep their states."""
        self._resumed = state

    def _take_seed(self) -> None:
        """Take the seed of the resumed run, and say if its data were others."""
        assert self._resumed is not None
        if self._resumed["size"] != self._sampler.size:
            self.runner.logger.warning(
                f"The training data now has {self._sampler.size} samples, when the checkpoint was written it had "
                f"{self._resumed['size']}: the resumed run draws others than the run without interruption."
            )
        self._sampler.seed = self._resumed["seed"]

    def _warn_of_no_position(self, batches: int) -> None:
        self.runner.logger.warning(
            "The checkpoint holds no position in the training data (it is not one of DurableCheckpointHook's, or of another "
            f"loop): the data goes on after {batches} batches, with other random numbers than without interruption."
        )

    def _restore_rng(self) -> None:
        if self._resumed is not None and "rng" in self._resumed:
            set_rng_state(self._resumed["rng"])

    def _validate_if_due(self, done: int, end: int) -> None:
        """Validate after the last iteration or epoch and every ``val_interval`` ones, from ``val_begin`` on.

        The random generators stay as they were.
        """
        update_val_interval(self)
        is_due = done == end or done % self.val_interval == 0
        if self.runner.val_loop is not None and done >= self.val_begin and is_due:
            with preserved_rng() as self._before_validation:
                self.runner.val_loop.run()
            self._before_validation = None


@LOOPS.register_module()
class ResumableIterLoop(_ResumableLoop, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` that can be resumed: on a CPU, with the uninterrupted run's weights bit for bit.

    `gbseg.mm.hooks.checkpoint.DurableCheckpointHook` saves `state_dict`. Beside it, this takes:

    * the training data continues at the next draw, without replay, and every sample is augmented with generators seeded for
      its draw (`gbseg.mm.resumable_sampler`), so neither workers nor history matter;
    * validation restores the random generators, so it does not matter whether it ran;
    * a validation that was due when the checkpoint was written, and is not part of it, is done first.

    Args:
        runner: the runner.
        dataloader: config of the training data, or a DataLoader. Its sampler must be a
            `gbseg.mm.resumable_sampler.ResumableSampler`.
        *args: further arguments of ``IterBasedTrainLoop``: ``max_iters``; ``val_begin``, the first iteration that may be
            validated; ``val_interval``, iterations between validations (the last iteration is always validated); and
            ``dynamic_intervals``, (iteration, interval) pairs that replace ``val_interval`` from that iteration on.
        **settings: the same, by name.

    Raises:
        TypeError: the sampler is not a ``ResumableSampler`` in an ordinary fixed-size ``BatchSampler``.
    """

    def run(self) -> nn.Module:
        """Train, and return the model."""
        if self.iter >= self.max_iters:
            self.runner.logger.info(f"All {self.max_iters} iterations were trained before: there is nothing to do.")
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self._set_position()
        self.dataloader_iterator = iter(self.dataloader)
        # only now: the hooks above may have used the generators, and so does making the iterator
        self._restore_rng()
        if self._resumed is not None and not self._resumed["validated"]:
            self._validate_if_due(self.iter, self.max_iters)
        while self.iter < self.max_iters and not self.stop_training:
            self.runner.model.train()
            batch = next(self.dataloader_iterator)
            self._draws += self._draws_per_iter
            self.run_iter(batch)
            self._validate_if_due(self.iter, self.max_iters)
        # the workers would go on to prefetch an endless stream
        del self.dataloader_iterator
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _set_position(self) -> None:
        """Start the sampler at the draw where the interrupted run stopped."""
        if self._resumed is not None and "epoch" in self._resumed:
            self._resumed = None
        if self._resumed is not None:
            self._take_seed()
            self._draws = self._resumed["draws"]
        elif self.iter > 0:
            self._warn_of_no_position(self.iter)
            self._draws = self.iter * self._draws_per_iter
        # rounded up where the number of processes has changed, so that no image of the epoch comes twice
        self._sampler.skip(-(-self._draws // get_world_size()))


@LOOPS.register_module()
class ResumableEpochLoop(_ResumableLoop, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that can be resumed, also in the middle of an epoch.

    The promises are those of `ResumableIterLoop`. An epoch has as many iterations as with mmengine's ``DefaultSampler``.

    Args:
        runner: the runner.
        dataloader: config of the training data, or a DataLoader. Its sampler must be a
            `gbseg.mm.resumable_sampler.ResumableSampler`.
        *args: further arguments of ``EpochBasedTrainLoop``: ``max_epochs``; ``val_begin``, the first epoch that may be
            validated; ``val_interval``, epochs between validations (the last epoch is always validated); and
            ``dynamic_intervals``, (epoch, interval) pairs that replace ``val_interval`` from that epoch on.
        **settings: the same, by name.

    Raises:
        TypeError: the sampler is not a ``ResumableSampler`` in an ordinary fixed-size ``BatchSampler``.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: Any, **settings: Any) -> None:
        super().__init__(runner, dataloader, *args, **settings)
        self._sampler.endless = False

    def state_dict(self) -> dict[str, Any]:
        """The state of this process, with ``epoch``, from 0; ``draws`` are those of all processes in this epoch."""
        return {**super().state_dict(), "epoch": self._sampler.epoch}

    def run(self) -> nn.Module:
        """Train, and return the model."""
        if self.epoch >= self.max_epochs:
            self.runner.logger.info(f"All {self.max_epochs} epochs were trained before: there is nothing to do.")
        self.runner.call_hook("before_train")
        first_batch = self._set_position()
        if first_batch == 0:
            # between two epochs, which a checkpoint leaves before the validation
            self._restore_rng()
            if self._resumed is not None and not self._resumed["validated"]:
                self._validate_if_due(self.epoch, self.max_epochs)
        while self.epoch < self.max_epochs and not self.stop_training:
            self._run_epoch(first_batch)
            first_batch = 0
            self._validate_if_due(self.epoch, self.max_epochs)
        self.runner.call_hook("after_train")
        return self.runner.model

    def _run_epoch(self, first_batch: int) -> None:
        """Train an epoch from this batch on; there may be none left, where it was interrupted after its last one."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._sampler.set_epoch(self.epoch)
        self._sampler.skip(-(-self._draws // get_world_size()) if first_batch else 0)
        with preserved_rng():
            # which takes a random number, but not where persistent workers go on to the next epoch
            batches = iter(self.dataloader)
        if first_batch:
            # only now: the hooks above may have used the generators
            self._restore_rng()
        else:
            self._draws = 0
        for index, batch in enumerate(batches, first_batch):
            self._draws += self._draws_per_iter
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _set_position(self) -> int:
        """Take the position where the interrupted run stopped; returns the number of the next batch in its epoch."""
        if self._resumed is not None and self._resumed.get("epoch") not in (self.epoch, self.epoch - 1):
            self._resumed = None
        if self._resumed is not None:
            self._take_seed()
            # also of an epoch that is over: a checkpoint may be written before the next one begins
            self._sampler.set_epoch(self._resumed["epoch"])
            self._draws = self._resumed["draws"]
            if self._resumed["epoch"] < self.epoch:
                return 0
        elif self.iter > 0:
            self._warn_of_no_position(self.iter)
            self._draws = max(self.iter - self.epoch * len(self.dataloader), 0) * self._draws_per_iter
        return -(-self._draws // self._draws_per_iter)
