"""Which files of a path on this machine make up a checkpoint, and whether they look whole."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from foldin.errors import CheckpointError, listed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STATISTICS = "statistics.safetensors"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class CheckpointFile:
    """One file to send.

    Attributes:
      name: the name it is sent under.
      path: where it is.
    """

    name: str
    path: Path


def find_checkpoint(path: str | Path) -> tuple[CheckpointFile, ...]:
    """Return the files of the checkpoint at path, each opened once to see that it is whole.

    Args:
      path: a .safetensors file, or a folder with an adapter (adapter_config.json and adapter_model.safetensors),
        with model.safetensors, or with an index and its shards; the first of these that is there is taken, and with
        it statistics.safetensors, if that is there too: what some merge rules weigh submissions by.

    Raises:
      CheckpointError: there is no checkpoint, or a part of it is missing, superfluous or broken.
    """
    path = Path(path).expanduser()
    try:
        files = _in_folder(path) if path.is_dir() else _single_file(path)
        for file in files:
            if file.name.endswith(".safetensors"):
                _require_whole(file.path)
        beside = _statistics(path)  # which most daemons do not read, whatever it is
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    return (*files, *beside)


def _single_file(path: Path) -> tuple[CheckpointFile, ...]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if path.suffix in _PICKLED:
        raise CheckpointError(f"{path} is a pickled checkpoint; {_convert(path)}")
    if path.suffix != ".safetensors" or not path.is_file():
        raise CheckpointError(f"{path} is no checkpoint: give a .safetensors file or the folder that holds the model.")
    if _SHARD.fullmatch(path.name):
        raise CheckpointError(f"{path} is one shard of a model: submit the folder that holds all of them.")
    if path.name == ADAPTER[1]:
        raise CheckpointError(f"{path} is an adapter without its configuration: submit the folder that holds both.")
    return (CheckpointFile(SINGLE, path),)


def _in_folder(folder: Path) -> tuple[CheckpointFile, ...]:
    for names in (ADAPTER, (SINGLE,)):
        if all((folder / name).is_file() for name in names):
            return tuple(CheckpointFile(name, folder / name) for name in names)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    raise CheckpointError(_why_none(folder))


def _statistics(folder: Path) -> tuple[CheckpointFile, ...]:
    path = folder / STATISTICS  # of a file, nothing is there
    return (CheckpointFile(STATISTICS, path),) if path.is_file() else ()


def _sharded(folder: Path) -> tuple[CheckpointFile, ...]:
    shards = _named_by(folder / INDEX)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {listed(missing)}, which its {INDEX} names: "
            "fetch what is missing, or save the model again."
        )
    stray = [name for name in _names(folder) if _SHARD.fullmatch(name) and name not in shards]
    if stray:
        raise CheckpointError(
            f"{folder} holds {listed(stray)}, which its {INDEX} does not name: "
            "they are left from another save. Delete them, or save the model again into an empty folder."
        )
    return tuple(CheckpointFile(name, folder / name) for name in (INDEX, *shards))


def _named_by(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = []
    if not shards or not all(isinstance(name, str) for name in shards):
        raise CheckpointError(f"{index} is no index: it has no `weight_map` of tensors to files. Save the model again.")
    for name in shards:
        if name == STATISTICS:
            raise CheckpointError(f"{index} names {name}, which is no name of a shard. Save the model again.")
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names {name!r}: only .safetensors files beside the index can be sent. "
                "Put all shards into one folder and save the model again."
            )
    return shards


def _why_none(folder: Path) -> str:
    names = _names(folder)
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if any(_SHARD.fullmatch(name) for name in safetensors):
        return f"{folder} holds shards but no {INDEX}: fetch the index too, or save the model again."
    if ADAPTER[1] in safetensors:
        return f"{folder} holds {ADAPTER[1]} but no {ADAPTER[0]}: an adapter is submitted with its configuration."
    adapters = [name for name in names if (folder / name / ADAPTER[0]).is_file()]
    if adapters:
        return (
            f"{folder} holds adapters in the folders {listed(adapters)}: submit them one by one, "
            f"say foldin submit {folder / adapters[0]}"
        )
    if safetensors:
        return f"{folder} holds no {SINGLE}; to submit another file, name it: foldin submit {folder / safetensors[0]}"
    pickled = [name for name in names if name.endswith((*_PICKLED, ".bin.index.json"))]
    if pickled:
        return f"{folder} holds {listed(pickled)}; {_convert(folder)}"
    return f"{folder} holds no checkpoint: no {SINGLE}, no {INDEX}, no {' with '.join(reversed(ADAPTER))}."


def _require_whole(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): it is still being written, or its download or save "
            "broke off. Wait for it, or make it again."
        ) from None


def _convert(path: Path) -> str:
    return f"only safetensors are taken. Make them with: foldin convert {path} --to FOLDER, then submit that folder."


def is_plain(name: str) -> bool:
    """Whether a name is one of a file in a folder, without any path in it."""
    return name not in {"", ".", ".."} and not any(mark in name for mark in "/\\\0")


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())
