"""A tiny but real training run, to be started in processes that may be killed.

Its augmentation draws from all three global generators, its model from torch's while training (dropout, sampling) and
from all three while validating; it has batch norm, an average of the weights, Adam, a schedule and gradient clipping.
"""

import multiprocessing
import os
import random
import resource
import signal
import stat
import sys
import time
import traceback
from pathlib import Path
from typing import Any, ClassVar

import mmengine.runner.runner
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from torch import Tensor, nn

import gbseg.mm  # noqa: F401  (registers what the configs below name)
from gbseg.mm.compat import unwrap_model

# one server that has imported everything; every run is a fork of it, clean of whatever pytest has done
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "mmengine.runner",
        "mmengine.visualization",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "torch._dynamo",
        "mmcv.transforms",
        "pytest",
        "gbseg.mm.amp",
        "gbseg.mm.hooks.checkpoint",
        "gbseg.mm.loops",
        "gbseg.mm.hooks.progress_bar",
    ]
)
MAX_ITERS = 12
DATASET = {"type": "TinyDataset", "serialize_data": False, "pipeline": [{"type": "TinyAugment"}]}


@TRANSFORMS.register_module()
class TinyAugment:
    """Shift by python, scale by numpy, add noise by torch."""

    def __call__(self, results: dict) -> dict:
        """Make the sample."""
        x = torch.linspace(-1, 1, 6) * (results["number"] % 3 + 1)
        x = (x + random.random()) * np.random.uniform(0.5, 1.5) + 0.1 * torch.randn(6)  # noqa: NPY002
        return {"inputs": x.float(), "label": torch.tensor(results["number"] % 3), "number": results["number"]}


@DATASETS.register_module()
class TinyDataset(BaseDataset):
    """Ten numbers."""

    METAINFO: ClassVar[dict] = {"classes": ("a", "b", "c")}

    def load_data_list(self) -> list[dict]:
        """Give the numbers."""
        return [{"number": number} for number in range(10)]


@MODELS.register_module()
class TinyModel(BaseModel):
    """Two layers; ``bad_at`` is the iteration (from 1) whose loss term ``aux_loss`` is not finite.

    ``trouble`` holds lists of an iteration, what happens in it, and the process: "loss" (``aux_loss`` is infinite, and the
    batch norm's running mean with it), "gradient" (infinite below the second layer, with a finite loss) or "large" (100,000
    times the loss).
    """

    def __init__(self, bad_at: int | None = None, report: str | None = None, trouble: tuple | list = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.bad_at = bad_at
        self.report = report
        self.calls = 0
        self.trouble = trouble

    def bad_label_report(self) -> str | None:
        """Say what the config says."""
        return self.report

    def forward(self, inputs: list, label: list, number: list, mode: str = "loss") -> Any:
        """Compute two loss terms or one score a row."""
        now = MessageHub.get_current_instance().get_info("iter", -1) + 1
        kinds = {kind for at, kind, *ranks in self.trouble if at == now and mode == "loss" and get_rank() in (ranks or [0])}
        if "loss" in kinds:
            self.layers[1].running_mean.fill_(float("inf"))
        x = self.layers[:2](torch.stack(inputs))
        if "gradient" in kinds:
            x.register_hook(lambda gradient: gradient * float("inf"))
        x = self.layers[2:](x)
        if mode == "loss":
            self.calls += 1
            chosen = torch.randperm(len(x))[:3]
            aux = x.square().mean() * 0.01
            if self.calls == self.bad_at:
                aux = aux * float("inf")
            aux = aux * (100000.0 if "large" in kinds else 1.0) * (float("inf") if "loss" in kinds else 1.0)
            return {"main_loss": F.cross_entropy(x[chosen], torch.stack(label)[chosen]), "aux_loss": aux}
        x = x + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return [{"score": float(row.sum())} for row in x]


@METRICS.register_module()
class TinyMetric(BaseMetric):
    """The mean output."""

    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        """Keep the scores."""
        self.results += [sample["score"] for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average them."""
        return {"score": sum(results) / len(results)}


@HOOKS.register_module()
class KillHook(Hook):
    """Send this process a signal at one stage of one iteration."""

    def __init__(self, stage: str, at: int, number: int = signal.SIGKILL, group: bool = False) -> None:
        self.stage = stage
        self.at = at
        self.number = number
        self.group = group

    def _here(self, stage: str, iteration: int) -> None:
        if (stage, iteration) == (self.stage, self.at):
            # the group: with the workers of the data loader, as a terminal or scheduler does
            os.killpg(0, self.number) if self.group else os.kill(os.getpid(), self.number)

    def before_train(self, runner: Runner) -> None:
        """Kill in the network's forward or backward pass."""
        if self.group:
            os.setpgid(0, 0)
        network = unwrap_model(runner.model)
        if not isinstance(network, TinyModel):
            return
        layer = network.layers[0]
        layer.register_forward_hook(lambda *_: self._here("forward", runner.iter + 1) if layer.training else None)
        layer.weight.register_hook(lambda _: self._here("backward", runner.iter + 1))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Kill here."""
        self._here("before_train_iter", runner.iter + 1)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Kill here."""
        self._here("after_train_iter", runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Kill here."""
        self._here("before_val_epoch", runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Kill here, in the middle."""
        if batch_idx == 1:
            self._here("after_val_iter", runner.iter)

    def after_val(self, runner: Runner) -> None:
        """Kill here."""
        self._here("after_val", runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Kill here."""
        self._here("after_train", runner.iter)


@HOOKS.register_module()
class SpyHook(Hook):
    """Write down which stages are reached and what the parameters were before an iteration; poison one at will."""

    # after the guard, before the checkpoint
    priority = "NORMAL"

    def __init__(self, poison_at: int | None = None, poison: str = "layers.4.bias", rank: int = 0) -> None:
        self.poison_at = poison_at
        self.poison = poison
        self.rank = rank

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save the parameters."""
        torch.save(runner.model.state_dict(), Path(runner.work_dir, "before.pt"))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Put a NaN into a parameter or a buffer of one process."""
        if runner.iter + 1 == self.poison_at and get_rank() == self.rank:
            unwrap_model(runner.model).state_dict()[self.poison][0] = float("nan")

    def after_train(self, runner: Runner) -> None:
        """Leave a trace."""
        Path(runner.work_dir, "after_train").touch()

    def after_run(self, runner: Runner) -> None:
        """Leave a trace."""
        Path(runner.work_dir, "after_run").touch()


def kill_in_write(number: int, how: str, kill_signal: int = signal.SIGKILL) -> None:
    """Arrange for a signal during the ``number``-th file that this process writes durably (two for each checkpoint)."""
    written = 0
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        nonlocal written
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            written += 1
            if written == number and how == "half":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), kill_signal)
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        if written == number and how == "before rename":
            os.kill(os.getpid(), kill_signal)
        result = real_replace(self, target)
        if written == number and how == "after rename":
            os.kill(os.getpid(), kill_signal)
        return result

    os.fsync, Path.replace = fsync, replace


def config(
    work_dir: Path,
    *,
    workers: int = 0,
    ckpt: int = 3,
    val: int = 4,
    resume: bool = False,
    kill: tuple[str, int] | None = None,
    kill_signal: int = signal.SIGKILL,
    kill_group: bool = False,
    stop: dict | None = None,
    memory: bool = False,
    pause: float = 0.0,
    guard: bool = True,
    spy: dict | None = None,
    **changes: Any,
) -> Config:
    """The whole config of the run; ``changes`` are merged into it."""
    loader = {
        "batch_size": 4,
        "num_workers": workers,
        "dataset": DATASET,
    }
    hooks: list[dict] = [{"type": "EMAHook"}]
    if guard:
        hooks.append({"type": "NonFiniteGuardHook"})
    if spy is not None:
        hooks.append({"type": "SpyHook", **spy})
    if kill:
        hooks.append(
            {
                "type": "KillHook",
                "stage": kill[0],
                "at": kill[1],
                "number": kill_signal,
                "group": kill_group,
                "priority": "LOWEST",
            }
        )
    if stop is not None:
        hooks.append({"type": "StopHook", **stop})
    if memory:
        hooks.append({"type": "MemoryHook"})
    if pause:
        hooks.append({"type": "PauseHook", "seconds": pause})
    cfg = Config(
        {
            "model": {"type": "TinyModel"},
            "work_dir": str(work_dir),
            "experiment_name": "tiny",
            "resume": resume,
            "randomness": {"seed": 5},
            "train_dataloader": {**loader, "sampler": {"type": "ResumableSampler"}},
            "val_dataloader": {**loader, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}},
            "train_cfg": {"type": "ResumableIterLoop", "max_iters": MAX_ITERS, "val_interval": val},
            "val_cfg": {},
            "val_evaluator": {"type": "TinyMetric"},
            "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 0.02}, "clip_grad": {"max_norm": 1.0}},
            "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 8, "by_epoch": False}],
            "default_hooks": {
                "logger": {"type": "LoggerHook", "interval": 1, "log_metric_by_epoch": False},
                "checkpoint": {
                    "type": "DurableCheckpointHook",
                    "by_epoch": False,
                    "interval": ckpt,
                    "save_best": "score",
                    "rule": "greater",
                },
            },
            "custom_hooks": hooks,
            "log_processor": {"by_epoch": False, "window_size": 1},
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


@HOOKS.register_module()
class MemoryHook(Hook):
    """Write down the memory of the process, in KiB, every 20 iterations."""

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Read it from the system; ``ru_maxrss`` is the most so far, which never falls."""
        if self.every_n_train_iters(runner, 20):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with Path(runner.work_dir, "memory.txt").open("a") as file:
                file.write(f"{pages * resource.getpagesize() // 1024}\n")


@HOOKS.register_module()
class PauseHook(Hook):
    """Make iterations long enough to be hit by a clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait."""
        time.sleep(self.seconds)


def make_starts_fast() -> None:
    """Change MMEngine for all that follows in this process, which does nothing but a tiny run."""
    # most of a short run's time: one asks compilers for their versions, the other lays out the config's text anew each time
    mmengine.runner.runner.collect_env = dict
    Config.pretty_text = property(lambda self: "\n".join(f"{key} = {value!r}" for key, value in self.items()))


def runner(cfg: Config) -> Runner:
    """Build the run in a process that does nothing else, see `make_starts_fast`."""
    torch.set_num_threads(1)
    make_starts_fast()
    return Runner.from_cfg(cfg)


def train(
    work_dir: Path,
    kill_write: tuple[int, str] | None = None,
    file_limit: int | None = None,
    environment: dict[str, str] | None = None,
    ignored: int | None = None,
    **options: Any,
) -> None:
    """Train in this process; what is printed goes to ``out.txt``, and after an error ``after.pt`` gets the parameters."""
    with Path(work_dir, "out.txt").open("a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        os.dup2(sys.stdout.fileno(), 2)
        os.environ.update(environment or {})
        for number in (signal.SIGINT, signal.SIGHUP):
            # the tests themselves may have been started in the background, where these are ignored
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        if kill_write:
            kill_in_write(*kill_write, options.get("kill_signal", signal.SIGKILL))
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        try:
            tiny = runner(config(work_dir, **options))
            tiny.train()
        except Exception as error:
            traceback.print_exc()
            if options.get("spy") is not None:
                torch.save(tiny.model.state_dict(), Path(work_dir, "after.pt"))
            raise SystemExit(getattr(error, "exit_status", 1)) from None


def train_together(work_dir: Path, rank: int, store: str, **options: Any) -> None:
    """Train as one of two processes that average their gradients; mmengine's own launchers all want a GPU."""
    with Path(work_dir, f"out{rank}.txt").open("a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        os.dup2(sys.stdout.fileno(), 2)
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        cfg = config(work_dir, **options)
        torch.manual_seed(0)
        cfg.model = MMDistributedDataParallel(MODELS.build(cfg.model), broadcast_buffers=False)
        try:
            runner(cfg).train()
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(getattr(error, "exit_status", 1)) from None
        torch.distributed.destroy_process_group()


def output(work_dir: Path) -> str:
    """What the runs in this folder have printed so far."""
    return Path(work_dir, "out.txt").read_text()


def start(work_dir: Path, target: Any = train, **options: Any) -> Any:
    """Start the run in a process of its own."""
    work_dir.mkdir(exist_ok=True, parents=True)
    process = SERVER.Process(target=target, args=(work_dir,), kwargs=options)
    process.start()
    return process


def run(work_dir: Path, target: Any = train, **options: Any) -> int:
    """The exit code of a run in a process of its own: 0, 1 after an exception, or minus the signal."""
    process = start(work_dir, target, **options)
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The paths at which two nested structures differ; tensors are compared bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        if set(one) != set(other):
            return [f"{path}: {set(one) ^ set(other)}"]
        return [line for key in one for line in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        return [line for n, (a, b) in enumerate(zip(one, other, strict=True)) for line in differences(a, b, f"{path}[{n}]")]
    return [] if one == other else [f"{path}: {one} and {other}"]


def result(work_dir: Path, iteration: int = MAX_ITERS, name: str = "") -> dict[str, Any]:
    """All of a checkpoint that must not depend on interruptions, with the curves that it holds."""
    checkpoint = torch.load(Path(work_dir, name or f"iter_{iteration}.pth"), weights_only=False)
    curves = checkpoint["message_hub"]["log_scalars"]
    kept = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "training_state")
    state = {key: checkpoint[key] for key in kept}
    # what was still there to be removed when it was written
    del state["training_state"]["outdated"]
    state["curves"] = {name: curves[name].data[0].tolist() for name in curves if not name.endswith("time")}
    state["best"] = sorted(path.name for path in Path(work_dir).glob("best_*"))
    state["kept"] = sorted(path.name for kind in ("iter", "epoch") for path in Path(work_dir).glob(f"{kind}_*"))
    return state
