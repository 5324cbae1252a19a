"""Training with MMEngine and its family: configs, data sets, models, hooks, loops, checkpoints, commands.

Importing it registers all components: ``custom_imports = dict(imports=["gbseg.mm"])`` in a config. From then on MMEngine loads
checkpoints, pickles and YAML as data only, so that none of them runs code (`gbseg.mm.checkpoint_loading`,
`gbseg.mm.data_file_loading`).
"""

# MMEngine's loading of checkpoints and data files; registers the others
from gbseg.mm import checkpoint_loading, data_file_loading, datasets, models  # noqa: F401
from gbseg.mm.amp import CpuAmpOptimWrapper, enable_amp
from gbseg.mm.boosted_config import boost_config
from gbseg.mm.config import load_config
from gbseg.mm.fully_shard import FullyShard
from gbseg.mm.hooks.broadcast_buffers import BroadcastBuffersHook
from gbseg.mm.hooks.channels_last import ChannelsLastHook
from gbseg.mm.hooks.checkpoint import DurableCheckpointHook
from gbseg.mm.hooks.class_count import ClassCountHook
from gbseg.mm.hooks.convergence_hook import ConvergenceHook
from gbseg.mm.hooks.fused_resize import FuseResizeHook
from gbseg.mm.hooks.gradient_stats import GradientStatsHook
from gbseg.mm.hooks.link_scores import LinkScoresHook
from gbseg.mm.hooks.list_check import ListCheckHook
from gbseg.mm.hooks.nonfinite_guard import NonFiniteGuardHook, NonFiniteLossError
from gbseg.mm.hooks.overlay_hook import OverlayHook
from gbseg.mm.hooks.progress_bar import ProgressHook
from gbseg.mm.hooks.report_hook import ReportHook
from gbseg.mm.hooks.sample_check import LabelledPixelsHook, SampleCheckHook
from gbseg.mm.hooks.stop import StopHook, TrainingStopped
from gbseg.mm.hooks.sync_divisor import SyncDivisorHook
from gbseg.mm.hooks.train_test_overlap import OverlapHook
from gbseg.mm.hooks.validation_loss import ValidationLossHook
from gbseg.mm.loops import ResumableEpochLoop, ResumableIterLoop
from gbseg.mm.models.link_tta import LinkTTAModel
from gbseg.mm.models.ohem_sampler import LinkOHEMPixelSampler
from gbseg.mm.resumable_sampler import ResumableSampler
from gbseg.mm.run_comparison import compare_runs
from gbseg.mm.training import train
from gbseg.mm.voc_metric import VOCMetric

__all__ = [
    "BroadcastBuffersHook",
    "ChannelsLastHook",
    "ClassCountHook",
    "ConvergenceHook",
    "CpuAmpOptimWrapper",
    "DurableCheckpointHook",
    "FullyShard",
    "FuseResizeHook",
    "GradientStatsHook",
    "LabelledPixelsHook",
    "LinkOHEMPixelSampler",
    "LinkScoresHook",
    "LinkTTAModel",
    "ListCheckHook",
    "NonFiniteGuardHook",
    "NonFiniteLossError",
    "OverlapHook",
    "OverlayHook",
    "ProgressHook",
    "ReportHook",
    "ResumableEpochLoop",
    "ResumableIterLoop",
    "ResumableSampler",
    "SampleCheckHook",
    "StopHook",
    "SyncDivisorHook",
    "TrainingStopped",
    "VOCMetric",
    "ValidationLossHook",
    "boost_config",
    "compare_runs",
    "enable_amp",
    "load_config",
    "train",
]
