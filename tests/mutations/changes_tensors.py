"""Changes after which a safetensors file is still sound: other values, other tensors."""

from random import Random

import numpy as np

from tests.mutations.originals import Files
from tests.mutations.safefile import FLOATS, SafeFile, Stored, as_float32, from_float32, replaced, take_apart

VALUES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-40, 1e-20, -1e-10, 1.0, 6e4, 7e4, 1e19, 1e20, -1e30, 3.4e38)
FACTORS = (0.0, -1.0, 1e-40, 1e-30, 1e-20, 1e-8, 1e4, 1e15, 1e20, 1e30, 1e38)
PREFIX = "base_model.model."


def _floats(file: SafeFile) -> list[int]:
    return [number for number, tensor in enumerate(file.tensors) if tensor.dtype in FLOATS and tensor.data]


def set_values(rng: Random, file: SafeFile) -> SafeFile:
    if not (floats := _floats(file)):
        return file
    number = rng.choice(floats)
    tensor = file.tensors[number]
    values = as_float32(tensor).copy()
    for _ in range(rng.choice([1, 1, 3, 50])):
        if len(values):
            values[rng.randrange(len(values))] = rng.choice(VALUES)
    return file._replace(tensors=replaced(file.tensors, number, data=from_float32(values, tensor.dtype)))


def fill(rng: Random, file: SafeFile) -> SafeFile:
    if not (floats := _floats(file)):
        return file
    number = rng.choice(floats)
    tensor = file.tensors[number]
    values = as_float32(tensor).copy()
    width = max(1, tensor.shape[-1]) if tensor.shape else 1
    first = rng.choice([0, rng.randrange(max(1, len(values) // width)) * width])
    values[first : rng.choice([first + width, len(values)])] = rng.choice(VALUES)
    return file._replace(tensors=replaced(file.tensors, number, data=from_float32(values, tensor.dtype)))


def scale(rng: Random, file: SafeFile) -> SafeFile:
    if not (floats := _floats(file)):
        return file
    chosen, factor = rng.choice([floats, [rng.choice(floats)], [rng.choice(floats)]]), rng.choice(FACTORS)
    tensors = file.tensors
    for number in chosen:
        with np.errstate(over="ignore", invalid="ignore"):
            values = (as_float32(tensors[number]) * np.float32(factor)).astype("<f4")
        tensors = replaced(tensors, number, data=from_float32(values, tensors[number].dtype))
    return file._replace(tensors=tensors)


def retype(rng: Random, file: SafeFile) -> SafeFile:
    if not (floats := _floats(file)):
        return file
    number = rng.choice(floats)
    tensor, dtype = file.tensors[number], rng.choice([*FLOATS, "F64"])
    values = as_float32(tensor)
    data = values.astype("<f8").tobytes() if dtype == "F64" else from_float32(values, dtype)
    return file._replace(tensors=replaced(file.tensors, number, dtype=dtype, data=data))


def remove(rng: Random, file: SafeFile) -> SafeFile:
    number = rng.randrange(len(file.tensors))
    return file._replace(tensors=file.tensors[:number] + file.tensors[number + 1 :])


def reorder(rng: Random, file: SafeFile) -> SafeFile:
    return file._replace(tensors=rng.sample(file.tensors, len(file.tensors)))


def exchange(rng: Random, file: SafeFile) -> SafeFile:
    """Two tensors' contents."""
    one, other = rng.randrange(len(file.tensors)), rng.randrange(len(file.tensors))
    tensors = replaced(file.tensors, one, name=file.tensors[other].name)
    return file._replace(tensors=replaced(tensors, other, name=file.tensors[one].name))


def add(rng: Random, file: SafeFile) -> SafeFile:
    """A copy of a tensor, under a name that means something."""
    tensor = rng.choice(file.tensors)
    name = tensor.name
    inner = name.removeprefix(PREFIX)
    module = inner.partition(".lora_")[0].removesuffix(".weight")
    names = [f"{PREFIX}{module}{ending}" for ending in (".weight", ".bias", ".base_layer.weight", ".lora_B.bias")]
    names += [f"{PREFIX}{module}{ending}" for ending in (".modules_to_save.weight", ".lora_magnitude_vector")]
    names += [inner, f"{name}:scales", "lm_head.weight", "embeddings.word_embeddings.weight", "score.bias"]
    names += [f"{PREFIX}lm_head.weight", f"{PREFIX}embeddings.word_embeddings.weight", f"{PREFIX}score.bias"]
    names += [inner.replace("lora_A", "lora_embedding_A").replace("lora_B", "lora_embedding_B")]
    present = {tensor.name for tensor in file.tensors}
    if not (free := [found for found in names if found not in present]):
        return file
    added = tensor._replace(name=rng.choice(free))
    if rng.random() < 0.5:
        added = _fitting(rng, added)
    place = rng.randrange(len(file.tensors) + 1)
    return file._replace(tensors=[*file.tensors[:place], added, *file.tensors[place:]])


_SHAPES = {
    "lm_head.weight": [40, 24],
    "embeddings.word_embeddings.weight": [40, 24],
    "attention.query.weight": [24, 24],
    "attention.query.base_layer.weight": [24, 24],
    "attention.query.modules_to_save.weight": [24, 24],
    "intermediate.dense.weight": [48, 24],
    "output.dense.weight": [24, 48],
}


def _fitting(rng: Random, tensor: Stored) -> Stored:
    """With values of the shape that the base has under that name."""
    shape = next((shape for ending, shape in _SHAPES.items() if tensor.name.endswith(ending)), [24])
    values = np.array([rng.gauss(0, 0.1) for _ in range(int(np.prod(shape)))], "<f4")
    return tensor._replace(dtype="F32", shape=shape, data=values.tobytes())


def transpose(rng: Random, file: SafeFile) -> SafeFile:
    matrices = [number for number in _floats(file) if len(file.tensors[number].shape) == 2]
    if not matrices:
        return file
    number = rng.choice(matrices)
    tensor = file.tensors[number]
    values = as_float32(tensor)
    if len(values) != np.prod(tensor.shape):
        return file
    turned = np.ascontiguousarray(values.reshape(tensor.shape).T)
    data = from_float32(turned, tensor.dtype)
    return file._replace(tensors=replaced(file.tensors, number, shape=list(turned.shape), data=data))


CHANGES = (set_values, set_values, fill, scale, scale, retype, remove, reorder, exchange, add, add, transpose)


def change(rng: Random, files: Files) -> str:
    name = rng.choice([name for name in sorted(files) if name.endswith(".safetensors")])
    file = take_apart(files[name])
    if file is None or not file.tensors:
        return "nothing"
    how = rng.choice(CHANGES)
    try:
        files[name] = how(rng, file).content()
    except (TypeError, ValueError, AttributeError):  # an earlier change spoiled what this one needs
        return "nothing"
    return f"{how.__name__} in {name}"
