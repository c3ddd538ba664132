"""Pickled checkpoints rewritten as safetensors, without running what they hold. Nothing else here needs torch."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from foldin.checkpoint import ADAPTER, INDEX, SINGLE, is_plain
from foldin.errors import CheckpointError
from foldin.models import Progress

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_PICKLED_SINGLE = "pytorch_model.bin"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_PICKLED_ADAPTER = "adapter_model.bin"
_TRAINING_STATE = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state).*|global_step.*")
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which of its entries a training checkpoint holds the model's state, in the order they are tried."""


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
      folder: where.
      tensors: how many.
      size: of the tensors, in bytes.
      left_out: names of entries that are no tensors.
    """

    folder: Path
    tensors: int
    size: int
    left_out: tuple[str, ...]


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    strip_prefix: str = "",
    shard_size: int = 2 * 10**9,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Converted:
    """Write the tensors of a pickled checkpoint to a new folder, which appears whole or not at all.

    Args:
      source: a file of pickled tensors, or a folder with pytorch_model.bin, with an index and its shards, or with a
        PEFT adapter; in a folder, configuration and tokenizer come along.
      folder: does not exist yet, or is empty.
      strip_prefix: taken off the names that have it, as `module.` of DistributedDataParallel.
      shard_size: bytes of tensors that one written file holds at most, but for one larger tensor. About as much
        memory is needed; an adapter is always one file.
      on_progress: told of `converting`, in bytes read.

    Raises:
      CheckpointError: there is no such checkpoint, it holds something else than tensors, or the folder is in use.
    """
    source, folder = Path(source).expanduser(), Path(folder).expanduser()
    try:
        files = _sources(source)
        _require_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.converting-") as beside:
            target = Path(beside) / "model"
            target.mkdir()
            adapter = files[0].name == _PICKLED_ADAPTER
            writer = _Writer(target, ADAPTER[1] if adapter else SINGLE, None if adapter else shard_size)
            total, done = sum(file.stat().st_size for file in files), 0
            for file in files:
                on_progress(Progress("converting", done, total, file.name))
                for name, tensor in _tensors(file, writer.left_out):
                    writer.add(name.removeprefix(strip_prefix), tensor)
                writer.flush()
                done += file.stat().st_size
            on_progress(Progress("converting", total, total, files[-1].name))
            converted = writer.finish(folder)
            if source.is_dir():
                _copy_companions(source, target)
            target.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}.") from None
    return converted


def _sources(source: Path) -> list[Path]:
    if not source.is_dir():
        if source.suffix == ".safetensors":
            raise CheckpointError(f"{source} is no pickle: submit it as it is.")
        if not source.exists():
            raise CheckpointError(f"{source} does not exist.")
        return [source]
    names = sorted(entry.name for entry in source.iterdir())
    if _PICKLED_ADAPTER in names:
        if ADAPTER[0] not in names:
            raise CheckpointError(f"{source} holds an adapter but no {ADAPTER[0]}: fetch that too.")
        return [source / _PICKLED_ADAPTER]
    if _PICKLED_SINGLE in names:
        return [source / _PICKLED_SINGLE]
    if _PICKLED_INDEX in names:
        return _shards(source / _PICKLED_INDEX)
    pickled = [name for name in names if name.endswith(PICKLED) and not _TRAINING_STATE.fullmatch(name)]
    if len(pickled) == 1:
        return [source / pickled[0]]
    if pickled:
        raise CheckpointError(f"{source} holds {', '.join(pickled[:3])}: name the one that is the model.")
    if any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{source} holds safetensors: submit it as it is.")
    raise CheckpointError(f"{source} holds no pickled checkpoint: no {_PICKLED_SINGLE}, no {_PICKLED_ADAPTER}.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        plain = bool(names) and all(is_plain(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise CheckpointError(f"{index} is no index: it has no `weight_map` of tensors to files beside it.")
    return [index.parent / name for name in names]


def _require_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there already: name a folder that does not exist, or is empty.")


def _tensors(file: Path, left_out: list[str]) -> "Iterator[tuple[str, Tensor]]":
    torch = _torch()
    state = _state(_load(file))
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{file} holds no tensors by name, neither itself nor under {', '.join(_WRAPPERS)}: "
            "save the model's state_dict(), or use save_pretrained."
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            left_out.append(str(name))
        elif value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{file}: {name} is sparse, quantized or without values: save it as a plain tensor.")
        else:
            yield name, value.detach()


def _load(file: Path) -> Any:
    torch = _torch()
    from pickle import UnpicklingError

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{file} holds more than tensors, and loading that could run code of its maker, so it was not loaded "
            f"({reason}). If you trust it: load it yourself, and save the model with save_pretrained."
        ) from None
    except Exception as error:  # the loader meets broken files with whatever they lead it into
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file} is broken, or was not written by torch.save ({reason}).") from None


def _state(loaded: Any) -> Mapping[Any, Any]:
    if not isinstance(loaded, Mapping):
        return {}
    inner = (loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping))
    return next(inner, loaded)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError("`foldin convert` needs torch, which reads pickles: pip install torch") from None
    return torch


def _copy_companions(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.suffix in _COMPANIONS and path.name not in (_PICKLED_INDEX, INDEX) and path.is_file():
            shutil.copyfile(path, target / path.name)


class _Writer:
    """Collects tensors into files of limited size.

    Args:
      folder: where the files go.
      single: the name of the file if it stays the only one.
      shard_size: bytes of tensors a file, at most; None: all in one.
    """

    def __init__(self, folder: Path, single: str, shard_size: int | None) -> None:
        self.left_out: list[str] = []
        self._folder = folder
        self._single = single
        self._shard_size = shard_size
        self._waiting: dict[str, Tensor] = {}
        self._storages: set[int] = set()
        self._waiting_size = 0
        self._size = 0
        self._shards: list[list[str]] = []
        self._names: set[str] = set()

    def add(self, name: str, tensor: "Tensor") -> None:
        size = tensor.numel() * tensor.element_size()
        if self._shard_size is not None and self._waiting and self._waiting_size + size > self._shard_size:
            self.flush()
        if name in self._names:
            raise CheckpointError(f"there are two tensors {name}: in two files, or without the prefix.")
        self._names.add(name)
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != size or not tensor.is_contiguous():
            tensor = tensor.clone().contiguous()  # tied or a view: a file holds every tensor by itself
        self._storages.add(storage.data_ptr())
        self._waiting[name] = tensor
        self._waiting_size += size
        self._size += size

    def flush(self) -> None:
        """Write what waits: nothing of the pickle's file is needed after this."""
        from safetensors.torch import save_file

        if not self._waiting:
            return
        save_file(self._waiting, self._folder / f"{len(self._shards)}.part", metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._waiting = {}
        self._storages = set()
        self._waiting_size = 0

    def finish(self, folder: Path) -> Converted:
        """Give the files their names. Returns what will lie in the folder that they are moved to."""
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = self._single if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self._folder / f"{number}.part").rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self._size}, "weight_map": dict(sorted(weight_map.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        return Converted(folder, len(self._names), self._size, tuple(self.left_out))
