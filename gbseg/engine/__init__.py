"""The training engine, thin over `mmengine.runner.Runner`: configs, hooks, loops, checkpoints, progress, commands.

Importing it registers the components that configs name.
"""

from gbseg.engine.amp import CpuAmpOptimWrapper, enable_amp
from gbseg.engine.checkpoint import DurableCheckpointHook
from gbseg.engine.classes import ClassCountHook
from gbseg.engine.comparison import compare_runs
from gbseg.engine.config import load_config
from gbseg.engine.convergence import ConvergenceHook
from gbseg.engine.fused_resize import FuseResizeHook
from gbseg.engine.gradients import GradientStatsHook
from gbseg.engine.guard import NonFiniteGuardHook, NonFiniteLossError
from gbseg.engine.loop import ResumableIterLoop
from gbseg.engine.memory_format import ChannelsLastHook
from gbseg.engine.overlap import OverlapHook
from gbseg.engine.position import ResumableSampler
from gbseg.engine.progress import ProgressHook
from gbseg.engine.report import ReportHook
from gbseg.engine.test import OverlayHook, test
from gbseg.engine.train import train
from gbseg.engine.tta import LinkTTAModel

__all__ = [
    "ChannelsLastHook",
    "ClassCountHook",
    "ConvergenceHook",
    "CpuAmpOptimWrapper",
    "DurableCheckpointHook",
    "FuseResizeHook",
    "GradientStatsHook",
    "LinkTTAModel",
    "NonFiniteGuardHook",
    "NonFiniteLossError",
    "OverlapHook",
    "OverlayHook",
    "ProgressHook",
    "ReportHook",
    "ResumableIterLoop",
    "ResumableSampler",
    "compare_runs",
    "enable_amp",
    "load_config",
    "test",
    "train",
]
