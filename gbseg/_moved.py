"""Where modules and names of earlier versions went. They work until 1.0, with a warning that names the new place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["MODULES", "NAMES", "MovedModuleFinder", "moved_names", "register_as_before"]

MODULES = {
    "gbseg.classifiers": "gbseg.mm.models",
    "gbseg.classifiers.head": "gbseg.mm.models.classification_head",
    "gbseg.classifiers.networks": "gbseg.mm.models.classifiers",
    "gbseg.cli.checks": "gbseg.cli.data_checks",
    "gbseg.cli.options": "gbseg.cli.common_options",
    "gbseg.data.archives": "gbseg.data.prepare.archives",
    "gbseg.data.array_dataset": "gbseg.mm.datasets.array_dataset",
    "gbseg.data.class_folders": "gbseg.mm.datasets.class_folders",
    "gbseg.data.coco": "gbseg.data.prepare.coco",
    "gbseg.data.coco_instances": "gbseg.data.prepare.coco_instances",
    "gbseg.data.dataset": "gbseg.mm.datasets.segmentation",
    "gbseg.data.download": "gbseg.data.prepare.download",
    "gbseg.data.imagenet": "gbseg.data.prepare.imagenet",
    "gbseg.data.imagenet_devkit": "gbseg.data.prepare.imagenet_devkit",
    "gbseg.data.mmseg_datasets": "gbseg.mm.compat",
    "gbseg.data.parallel": "gbseg.parallel",
    "gbseg.data.sbd": "gbseg.data.prepare.sbd",
    "gbseg.data.stats": "gbseg.data.statistics",
    "gbseg.data.transforms": "gbseg.mm.datasets.transforms",
    "gbseg.data.verify": "gbseg.data.prepare.verify",
    "gbseg.data.voc": "gbseg.palettes",
    "gbseg.engine": "gbseg.mm",
    "gbseg.engine.amp": "gbseg.mm.amp",
    "gbseg.engine.browse": "gbseg.mm.sample_browser",
    "gbseg.engine.checkpoint": "gbseg.mm.hooks.checkpoint",
    "gbseg.engine.classes": "gbseg.mm.hooks.class_count",
    "gbseg.engine.comparison": "gbseg.mm.run_comparison",
    "gbseg.engine.config": "gbseg.mm.config",
    "gbseg.engine.convergence": "gbseg.mm.hooks.convergence_hook",
    "gbseg.engine.doctor": "gbseg.doctor",
    "gbseg.engine.doctor.data": "gbseg.doctor.dataset_checks",
    "gbseg.engine.doctor.finding": "gbseg.doctor.finding",
    "gbseg.engine.doctor.labels": "gbseg.doctor.label_checks",
    "gbseg.engine.doctor.model": "gbseg.doctor.model_checks",
    "gbseg.engine.doctor.packages": "gbseg.doctor.package_checks",
    "gbseg.engine.doctor.schedule": "gbseg.doctor.schedule_checks",
    "gbseg.engine.durable": "gbseg.mm.checkpoint_files",
    "gbseg.engine.fused_resize": "gbseg.mm.hooks.fused_resize",
    "gbseg.engine.gradients": "gbseg.mm.hooks.gradient_stats",
    "gbseg.engine.guard": "gbseg.mm.hooks.nonfinite_guard",
    "gbseg.engine.loop": "gbseg.mm.loops",
    "gbseg.engine.memory_format": "gbseg.mm.hooks.channels_last",
    "gbseg.engine.overlap": "gbseg.mm.hooks.train_test_overlap",
    "gbseg.engine.position": "gbseg.mm.resumable_sampler",
    "gbseg.engine.prediction": "gbseg.prediction.image_files",
    "gbseg.engine.progress": "gbseg.mm.hooks.progress_bar",
    "gbseg.engine.report": "gbseg.mm.hooks.report_hook",
    "gbseg.engine.rng": "gbseg.mm.rng",
    "gbseg.engine.runner": "gbseg.mm.runner",
    "gbseg.engine.segmenter": "gbseg.prediction.segmenter",
    "gbseg.engine.submit": "gbseg.prediction.submission",
    "gbseg.engine.test": "gbseg.prediction.testing",
    "gbseg.engine.tiles": "gbseg.prediction.tiles",
    "gbseg.engine.train": "gbseg.mm.training",
    "gbseg.engine.tta": "gbseg.mm.models.link_tta",
    "gbseg.engine.weights": "gbseg.mm.checkpoint_weights",
    "gbseg.evaluation.metric": "gbseg.mm.voc_metric",
    "gbseg.evaluation.submission": "gbseg.evaluation.submission_archive",
    "gbseg.losses.fused": "gbseg.losses.functional",
    "gbseg.losses.fused_cpu": "gbseg.losses.kernels.cpu",
    "gbseg.losses.fused_triton": "gbseg.losses.kernels.gpu",
    "gbseg.losses.guarded": "gbseg.losses.modules",
    "gbseg.losses.heads": "gbseg.mm.hooks.fused_resize",
    "gbseg.losses.problem": "gbseg.losses.functional",
    "gbseg.losses.resized": "gbseg.losses.resize",
    "gbseg.pixelnet.dropout": "gbseg.mm.models.pixelnet_head",
    "gbseg.pixelnet.first_layer": "gbseg.pixelnet.hypercolumn",
    "gbseg.pixelnet.gather": "gbseg.pixelnet.hypercolumn",
    "gbseg.pixelnet.head": "gbseg.mm.models.pixelnet_head",
    "gbseg.pixelnet.row_sums": "gbseg.pixelnet.hypercolumn",
    "gbseg.pixelnet.segmentor": "gbseg.mm.models.pixelnet_segmentor",
    "gbseg.pixelnet.trunk": "gbseg.mm.models.vgg16_trunk",
    "gbseg.pixelnet.weights": "gbseg.pixelnet.vgg16_weights",
    "gbseg.report.compare": "gbseg.report.comparison_table",
    "gbseg.report.evaluation": "gbseg.report.test_report",
    "gbseg.report.gradients": "gbseg.report.gradient_log",
    "gbseg.report.stats": "gbseg.report.statistics_figure",
    "gbseg.report.overlay": "gbseg.report.label_overlay",
    "gbseg.report.provenance": "gbseg.report.run_provenance",
    "gbseg.reproduction": "reproduction",
    "gbseg.reproduction.command": "reproduction.command",
    "gbseg.reproduction.figures": "reproduction.figures",
    "gbseg.reproduction.grid": "reproduction.grid",
    "gbseg.reproduction.report": "reproduction.report",
    "gbseg.reproduction.runs": "reproduction.runs",
    "gbseg.reproduction.search": "reproduction.search",
    "gbseg.reproduction.search_report": "reproduction.search_report",
    "gbseg.reproduction.search_space": "reproduction.search_space",
    "gbseg.reproduction.summary": "reproduction.summary",
    "gbseg.reproduction.trials": "reproduction.trials",
    "gbseg.reproduction.verdicts": "reproduction.verdicts",
    "gbseg.reproduction.worker": "reproduction.worker",
}
"""Old module -> new module."""

NAMES = {
    "gbseg.data.archives.damage_named": "gbseg.data.prepare.archives._readable_damage",
    "gbseg.data.archives.require_end": "gbseg.data.prepare.archives._require_end",
    "gbseg.data.prepare.NOVAL": "gbseg.data.prepare.voc.NOVAL",
    "gbseg.data.prepare.SBD_ARCHIVE": "gbseg.data.prepare.voc.SBD_ARCHIVE",
    "gbseg.data.prepare.Source": "gbseg.data.prepare.voc.Source",
    "gbseg.data.prepare.VOC_ARCHIVE": "gbseg.data.prepare.voc.VOC_ARCHIVE",
    "gbseg.data.prepare.coco.HOW": "gbseg.data.prepare.coco.LINK_MODES",
    "gbseg.data.prepare.coco_instances.Picture": "gbseg.data.prepare.coco_instances.CocoImage",
    "gbseg.data.prepare.coco_instances.draw": "gbseg.data.prepare.coco_instances.draw_mask",
    "gbseg.data.prepare.download.download": "gbseg.data.prepare.download.download_file",
    "gbseg.data.prepare.find_voc": "gbseg.data.prepare.voc.find_voc",
    "gbseg.data.prepare.prepare_voc": "gbseg.data.prepare.voc.prepare_voc",
    "gbseg.data.prepare.sbd.is_whole_png": "gbseg.data.prepare.sbd.is_complete_png",
    "gbseg.data.prepare.verify.verify": "gbseg.data.prepare.verify.verify_dataset",
    "gbseg.data.statistics.statistics": "gbseg.data.statistics.dataset_statistics",
    "gbseg.engine.OverlayHook": "gbseg.mm.hooks.overlay_hook.OverlayHook",
    "gbseg.engine.test": "gbseg.prediction.testing.test",
    "gbseg.engine.test.OverlayHook": "gbseg.mm.hooks.overlay_hook.OverlayHook",
    "gbseg.engine.browse.seen": "gbseg.mm.sample_browser.iter_samples",
    "gbseg.engine.position.Draw": "gbseg.mm.resumable_sampler.SampleIndex",
    "gbseg.engine.runner.TerseRunner": "gbseg.mm.runner.QuietRunner",
    "gbseg.engine.train": "gbseg.mm.training.train",
    "gbseg.evaluation.VOCMetric": "gbseg.mm.voc_metric.VOCMetric",
    "gbseg.files.only_process": "gbseg.files.lock_folder",
    "gbseg.files.spoken_errors": "gbseg.files.readable_os_errors",
    "gbseg.evaluation.faults.no_numbers": "gbseg.evaluation.faults.non_finite_logits",
    "gbseg.losses.fuse_resize": "gbseg.mm.hooks.fused_resize.fuse_resize",
    "gbseg.losses.fused_cpu.one_pass": "gbseg.losses.kernels.cpu.loss_and_gradient",
    "gbseg.losses.fused_cpu.terms_and_slopes": "gbseg.losses.kernels.cpu.loss_terms_and_gradient",
    "gbseg.losses.fused_triton.one_pass": "gbseg.losses.kernels.gpu.loss_and_gradient",
    "gbseg.losses.labels.default_ignore_index": "gbseg.losses.functional.default_ignore_index",
    "gbseg.losses.labels.find_bad_labels": "gbseg.losses.functional.find_bad_labels",
    "gbseg.losses.labels.require_labels": "gbseg.losses.functional.require_labels",
    "gbseg.losses.problem.Problem": "gbseg.losses.spec.LossSpec",
    "gbseg.losses.problem.traced": "gbseg.losses.functional.is_traced",
    "gbseg.losses.reference.masked": "gbseg.losses.reference.mask_ignored",
    "gbseg.losses.reference.reduced": "gbseg.losses.reference.reduce_loss",
    "gbseg.losses.resize.enlarge": "gbseg.losses.resize.upsample",
    "gbseg.parallel.run_all": "gbseg.parallel.run_in_processes",
    "gbseg.pixelnet.PixelNet": "gbseg.mm.models.PixelNet",
    "gbseg.pixelnet.PixelNetHead": "gbseg.mm.models.PixelNetHead",
    "gbseg.pixelnet.VGG16Trunk": "gbseg.mm.models.VGG16Trunk",
    "gbseg.pixelnet.first_layer.products_dtype": "gbseg.pixelnet.hypercolumn.compute_dtype",
    "gbseg.pixelnet.gather.corners": "gbseg.pixelnet.hypercolumn.bilinear_corners",
    "gbseg.pixelnet.gather.map_of": "gbseg.pixelnet.hypercolumn.unflatten_map",
    "gbseg.pixelnet.gather.table_of": "gbseg.pixelnet.hypercolumn.flatten_map",
    "gbseg.pixelnet.row_sums.keeps_half": "gbseg.pixelnet.hypercolumn.supports_half_precision",
    "gbseg.pixelnet.row_sums.spread": "gbseg.pixelnet.hypercolumn.scatter_add_rows",
    "gbseg.reproduction.grid.RunFailedError": "reproduction.pool.RunFailedError",
    "gbseg.reproduction.grid.Swept": "reproduction.grid.SweepResult",
    "gbseg.reproduction.grid.run_all": "reproduction.pool.train_runs",
    "gbseg.reproduction.runs.data_of": "reproduction.runs.describe_data",
    "gbseg.reproduction.runs.images_of": "reproduction.runs.count_images",
    "gbseg.reproduction.search.Confirmed": "reproduction.search.Confirmation",
    "gbseg.reproduction.search.Found": "reproduction.search.SearchResult",
    "gbseg.reproduction.search.search": "reproduction.search.run_search",
    "gbseg.reproduction.search.search_boost": "reproduction.command.search_boost",
    "gbseg.reproduction.worker.config_of": "reproduction.runs.config_path",
    "gbseg.reproduction.worker.prepare": "reproduction.worker.init_worker",
}
"""Old name -> new name, where a name has not simply moved along with its module."""


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes with gbseg 1.0.", FutureWarning, stacklevel=3)


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def moved_names(module: str) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562) for a module that still exists and has lost names."""

    def __getattr__(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(old, NAMES[old])
        return _load(NAMES[old])

    return __getattr__


class _MovedModule(ModuleType):
    """Stands at a module's old place, and looks its names up at the new one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        old = f"{self.__name__}.{name}"
        if old in NAMES:
            _warn(old, NAMES[old])
            return _load(NAMES[old])
        return import_module(old) if old in MODULES else getattr(import_module(MODULES[self.__name__]), name)

    def __setattr__(self, name: str, value: object) -> None:
        # importing gbseg.engine.train must not put that module in the place of the function gbseg.engine.train
        if f"{self.__name__}.{name}" not in NAMES:
            super().__setattr__(name, value)


class MovedModuleFinder(MetaPathFinder, Loader):
    """Finds modules at their old places."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec for the names of `MODULES`."""
        return ModuleSpec(name, cls(), is_package=True) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in for the module."""
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Load the module at its new place, which registers what it registers.

        Raises:
            ModuleNotFoundError: a module that is no part of the installed package any more.
        """
        new = MODULES[module.__name__]
        if new.startswith("reproduction") and find_spec("reproduction") is None:
            raise ModuleNotFoundError(
                f"{module.__name__} is no part of the package any more: it is the folder reproduction/ of a checkout.",
                name=module.__name__,
            )
        _warn(module.__name__, new)
        import_module(new)


def register_as_before() -> None:
    """Register the components for MMEngine that importing a package registered when they were a part of it."""
    if "mmengine.registry" in sys.modules and all(find_spec(name) for name in ("mmseg", "mmpretrain")):
        import_module("gbseg.mm")
