"""Training with PyTorch's ``fully_shard`` (FSDP2): each process keeps a part of every parameter and of its optimizer's state.

``model_wrapper_cfg = dict(type='FullyShard')`` in a config, and a launch by torchrun. Checkpoints are then folders of
``torch.distributed.checkpoint`` (`gbseg.mm.sharded_checkpoint`).
"""

import copy
import errno
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from gbseg.config_files import ConfigError, near
from gbseg.data.lists import abbreviate
from gbseg.files import REST, free_space, is_checkpoint_folder, remove_path, sync_folder, temporary_path
from gbseg.mm.checkpoint_contents import without_unsafe_entries
from gbseg.mm.checkpoint_files import CheckpointWriteError, write_checkpoint
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.compat import EarlyWeightsRunner, checkpoint_content, resumes
from gbseg.mm.sharded_checkpoint import file_record, shard_of, sharded_like

__all__ = ["FullyShard", "ShardedRunner", "remove_checkpoint_folder"]

# what mmseg's heads and auxiliary heads are called by; FSDP2 gathers parameters in ``__call__`` alone
_METHODS = ("loss", "predict")
_COPYING = ("EMAHook",)
_TENSORS = ("state_dict", "optimizer")


@MODEL_WRAPPERS.register_module()
class FullyShard(nn.Module):
    """A model whose parameters ``torch.distributed.fsdp.fully_shard`` distributes over all processes, in place.

    Without ``modules``, all parameters are gathered at the beginning of a step and are scattered at its end. With them, each
    of these modules gathers its own when it is called, so that only one of them is whole at a time.

    Buffers, such as the averages of BatchNorm, are not sharded: as with mmengine's ``DistributedDataParallel`` every process
    has its own, and checkpoints have those of the first. Gradients are reduced at every iteration, also where the optimizer
    steps at every second one only.

    Args:
        module: the model, on its device, with its initial weights.
        modules: names of modules (``'backbone'``) or of classes (``'TransformerEncoderLayer'``) that are sharded by
            themselves. The model must call them, and not read their parameters.
        reshard_after_forward: as for ``fully_shard``.
        mp_policy: the arguments of ``torch.distributed.fsdp.MixedPrecisionPolicy``, with the names of types, e.g.
            ``dict(param_dtype='bfloat16', reduce_dtype='float32')``.

    Attributes:
        module: the same model.
        mesh: the processes, in one dimension.
        saved_as: the last sharded checkpoint that was written or resumed, and its iteration.

    Raises:
        ValueError: the model has no such module; ``mp_policy`` names no type of PyTorch.
    """

    def __init__(
        self,
        module: nn.Module,
        modules: Sequence[str] = (),
        reshard_after_forward: bool | int | None = None,
        mp_policy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        device = next(module.parameters()).device.type
        self.mesh = init_device_mesh(device, (get_world_size(),))
        self.saved_as: tuple[Path, int] | None = None
        policy = MixedPrecisionPolicy(**{key: _dtype(key, value) for key, value in (mp_policy or {}).items()})
        settings: dict[str, Any] = dict(mesh=self.mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)
        for part in _modules(module, modules):
            fully_shard(part, **settings)
            for method in _METHODS:
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)
        fully_shard(module, **settings)
        self.module: Any = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's."""
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """The model's."""
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> Any:
        """The model's."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        """The model's."""
        return self.module.test_step(data)


def _modules(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of these names or classes, inner ones first, as ``fully_shard`` wants them."""
    named = {name: part for name, part in model.named_modules() if name}
    known = {*named, *(type(part).__name__ for part in named.values())}
    if unknown := [name for name in names if name not in known]:
        guess = near(unknown[0], known)
        hint = f"perhaps {guess[0]}" if guess else f"it has {abbreviate([name for name, _ in model.named_children()], 8)}"
        raise ValueError(f"FullyShard: the model has no module and no class of modules {abbreviate(unknown, 3)}: {hint}.")
    chosen = [part for name, part in named.items() if name in names or type(part).__name__ in names]
    return chosen[::-1]


def _dtype(key: str, value: Any) -> Any:
    """A type of PyTorch by its name; settings that are no types as they are."""
    if not isinstance(value, str):
        return value
    dtype = getattr(torch, value, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"FullyShard: mp_policy has {key}={value!r}, which is no type of PyTorch; name 'bfloat16', e.g.")
    return dtype


class ShardedRunner(EarlyWeightsRunner):
    """mmengine's ``Runner``, which can also train, save and resume a `FullyShard` model; any other as ever."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """mmengine's, but a model that is to be sharded gets its initial weights first: those of a part would be others.

        Raises:
            ConfigError: a hook copies the model, which sharding does not allow.
        """
        if model_wrapper_cfg and _name_of(model_wrapper_cfg.get("type")) == FullyShard.__name__ and self.distributed:
            hooks = [*(self.cfg.get("custom_hooks") or ()), *(self.cfg.get("default_hooks") or {}).values()]
            for hook in hooks:
                if isinstance(hook, Mapping) and _name_of(hook.get("type")) in _COPYING:
                    raise ConfigError(
                        f"{self.cfg.filename}: {hook['type']} keeps a copy of the whole model in every process, and "
                        "model_wrapper_cfg is FullyShard, which leaves each a part of it: take one of the two out."
                    )
            if self.cfg.get("train_cfg") and not is_model_wrapper(model):
                self.initialize_weights()
        return super().wrap_model(model_wrapper_cfg, model)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """mmengine's; of a `FullyShard` model as a folder, and under a name that ends in ``.pth`` as an ordinary file.

        Raises:
            gbseg.mm.checkpoint_files.CheckpointWriteError: on all processes, where one of them could not write.
        """
        if not isinstance(self.model, FullyShard):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        content = checkpoint_content(self, out_dir, filename, *args, **kwargs)
        path, iteration = Path(out_dir, filename), content["meta"]["iter"]
        if path.suffix == ".pth":
            _write_full(content, path)
            return
        _write_sharded(content, path, only_rest=self.model.saved_as == (path, iteration))
        self.model.saved_as = path, iteration

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """mmengine's; each process of a `FullyShard` model keeps its part of the weights."""
        if not isinstance(self.model, FullyShard):
            return super().load_checkpoint(filename, *args, **kwargs)
        is_resumed = resumes(self)
        with sharded_like(self.model.mesh):
            stored: dict[str, Any] = super().load_checkpoint(filename, *args, **kwargs)
        if is_resumed and is_checkpoint_folder(filename):
            self.model.saved_as = Path(filename), stored["meta"]["iter"]
        return stored

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """mmengine's; what was just read is given to the hooks, and to a `FullyShard` model, in parts."""
        if fn_name == "after_load_checkpoint" and isinstance(self.model, FullyShard):
            _share(kwargs["checkpoint"], self.model)
        super().call_hook(fn_name, **kwargs)


def _share(checkpoint: dict[str, Any], model: FullyShard) -> None:
    """Let each process keep its part of the tensors of an ordinary checkpoint; those of a folder are parts already."""
    sharded = {name for name, value in model.module.state_dict().items() if isinstance(value, DTensor)}
    weights = checkpoint.get("state_dict", checkpoint)
    for name, value in weights.items():
        if (
            name.removeprefix("module.") in sharded
            and isinstance(value, Tensor)
            and not isinstance(value, DTensor)
            and value.ndim
        ):
            weights[name] = shard_of(value, model.mesh)
    optimizer = checkpoint.get("optimizer", {})
    # of several optimizers, each has a state
    for part in [optimizer] if "state" in optimizer else optimizer.values():
        for state in part["state"].values():
            for name, value in state.items():
                if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.ndim:
                    state[name] = shard_of(value, model.mesh)


def _split(values: Mapping[str, Any], place: tuple, tensors: dict[tuple, Tensor]) -> Any:
    """A copy of nested dictionaries without the tensors in them, which are put into ``tensors`` by their keys."""
    kept: Any = copy.copy(values)
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[*place, key] = value
            del kept[key]
        elif isinstance(value, dict):
            kept[key] = _split(value, (*place, key), tensors)
    return kept


def _write_sharded(content: Mapping[str, Any], folder: Path, only_rest: bool) -> None:
    """Write a checkpoint as a folder, by all processes.

    Args:
        content: of an ordinary checkpoint; the tensors of weights and optimizer may be ``DTensor``.
        folder: its place; what is there is replaced.
        only_rest: the folder there has these weights and this state of the optimizer already.

    Raises:
        gbseg.mm.checkpoint_files.CheckpointWriteError: on all processes, where one of them could not write; no part of it is
            left.
    """
    tensors: dict[tuple, Tensor] = {}
    rest = {key: _split(value, (key,), tensors) if key in _TENSORS else value for key, value in content.items()}

    def write_rest(path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(rest, buffer)
        write_checkpoint(without_unsafe_entries(buffer.getbuffer(), folder), path / REST)

    def replace_rest() -> None:
        rest["sharded"] = read_checkpoint(folder / REST)["sharded"]
        write_rest(folder)

    if only_rest:
        _by_first(replace_rest, folder)
        return
    new, old = temporary_path(folder, "new"), temporary_path(folder, "old")
    _by_first(lambda: remove_path(new), folder)
    nested: dict[str, Any] = {}
    for place, tensor in tensors.items():
        node = nested
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = tensor
    try:
        # the buffers of the first process
        dcp_save(nested, storage_writer=FileSystemWriter(new), planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        _by_first(lambda: remove_path(new), folder)
        raise _write_error(folder, cause) from cause
    names = [".metadata"] if is_main_process() else []
    names += [path.name for path in new.glob(f"__{get_rank()}_*")]
    records = all_gather_object({name: file_record(new / name) for name in names})
    rest["sharded"] = {
        "files": {name: record for part in records for name, record in part.items()},
        "tensors": {".".join(map(str, place)): (place, isinstance(tensor, DTensor)) for place, tensor in tensors.items()},
    }

    def finish() -> None:
        write_rest(new)
        sync_folder(new)
        if folder.exists():
            remove_path(old)
            folder.rename(old)
        new.rename(folder)
        sync_folder(folder.parent)
        remove_path(old)

    _by_first(finish, folder)


def _name_of(kind: Any) -> str:
    """The name of a type in a config, without its scope."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _write_full(content: dict[str, Any], path: Path) -> None:
    """Write an ordinary checkpoint, for which the first process gathers the tensors, one after the other."""

    def gather(values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, DTensor):
                whole = cast(DTensor, value.to(value.device_mesh.device_type)).full_tensor()
                values[key] = whole.cpu() if is_main_process() else None
            elif isinstance(value, dict):
                gather(value)

    for key in _TENSORS:
        # mmengine has copied these dictionaries
        gather(content.get(key, {}))

    def write() -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_checkpoint(without_unsafe_entries(buffer.getbuffer(), path), path)

    _by_first(write, path)


def _by_first(step: Callable[[], None], path: Path) -> None:
    """Let the first process do something; where it cannot, all of them raise its error.

    Raises:
        gbseg.mm.checkpoint_files.CheckpointWriteError: it cannot write.
    """
    answer: list[OSError | None] = [None]
    if is_main_process():
        try:
            step()
        except CheckpointWriteError as error:
            answer = [error]
        except OSError as error:
            answer = [_write_error(path, error)]
    broadcast_object_list(answer)
    if answer[0] is not None:
        raise answer[0]


def _write_error(path: Path, cause: BaseException) -> CheckpointWriteError:
    number = getattr(cause, "errno", None) or errno.EIO
    text = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
    return CheckpointWriteError(
        number,
        f"{path} could not be written: {text} ({free_space(path.parent)}). The checkpoints before it are untouched: make room, "
        "then resume",
    )


def remove_checkpoint_folder(path: str | Path) -> None:
    """Remove a checkpoint's folder; from the first moment on, nothing is left under its name."""
    doomed = temporary_path(Path(path), "old")
    remove_path(doomed)
    Path(path).rename(doomed)
    remove_path(doomed)
