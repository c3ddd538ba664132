"""Changes of the coded tensors of a compressed task vector: streams, lengths, scales, shapes."""

import zlib
from random import Random

import numpy as np

from tests.mutations.originals import Files
from tests.mutations.safefile import SafeFile, take_apart
from tests.support.wire import SINGLE

SCALES = (0.0, -0.0, -1.0, np.nan, np.inf, 1e-45, 1e-30, 1e30, 3e38, 3.0)


def _part(file: SafeFile, rng: Random, ending: str) -> int | None:
    found = [number for number, tensor in enumerate(file.tensors) if tensor.name.endswith(ending)]
    return rng.choice(found) if found else None


def _strange_stream(rng: Random, packed: bytes) -> bytes:
    changed = bytearray(packed)
    for _ in range(rng.choice([1, 3])):
        changed[rng.randrange(len(packed))] = rng.choice([0, 1, 2, 80, 128, 129, 242, 243, 255, rng.randrange(256)])
    again = zlib.compress(packed, rng.choice([0, 1, 9]))
    dictionary = zlib.compressobj(zdict=b"\0\1\2" * 20)
    gzip, raw = zlib.compressobj(wbits=31), zlib.compressobj(wbits=-15)
    flushed = zlib.compressobj()
    return rng.choice(
        [
            zlib.compress(changed),
            zlib.compress(changed),
            again,
            again + b"\0",
            again + again,
            again[:-1],
            again[:-4],
            again[:-1] + bytes([again[-1] ^ 1]),
            zlib.compress(packed + b"\0"),
            zlib.compress(packed[:-1]),
            zlib.compress(bytes(10_000_000)),
            dictionary.compress(packed) + dictionary.flush(),
            gzip.compress(packed) + gzip.flush(),
            raw.compress(packed) + raw.flush(),
            flushed.compress(packed) + flushed.flush(zlib.Z_FULL_FLUSH) * 2 + flushed.flush(),
            rng.randbytes(len(packed)),
        ]
    )


def edit_stream(rng: Random, file: SafeFile) -> SafeFile:
    """One block of a tensor, its length told."""
    if (number := _part(file, rng, ":codes")) is None:
        return file
    codes = file.tensors[number]
    at = next((at for at, t in enumerate(file.tensors) if t.name == codes.name.replace(":codes", ":lengths")), None)
    if at is None:
        return file
    lengths = np.frombuffer(file.tensors[at].data, "<u4").copy()
    block = rng.randrange(len(lengths))
    first, last = int(lengths[:block].sum()), int(lengths[: block + 1].sum())
    try:
        packed = zlib.decompress(codes.data[first:last])
    except zlib.error:
        return file
    stream = _strange_stream(rng, packed or b"\0")
    lengths[block] = len(stream)
    tensors = list(file.tensors)
    content = codes.data[:first] + stream + codes.data[last:]
    tensors[number] = codes._replace(shape=[len(content)], data=content)
    if rng.random() < 0.9:
        tensors[at] = tensors[at]._replace(data=lengths.tobytes())
    return file._replace(tensors=tensors)


def edit_lengths(rng: Random, file: SafeFile) -> SafeFile:
    if (number := _part(file, rng, ":lengths")) is None:
        return file
    lengths = np.frombuffer(file.tensors[number].data, "<u4").astype(np.int64)
    block = rng.randrange(len(lengths))
    by = rng.choice([1, -1, 7, -7, 2**20, 2**31, -int(lengths[block])])
    lengths[block] += by
    if rng.random() < 0.5:
        lengths[rng.randrange(len(lengths))] -= by
    shape = list(file.tensors[number].shape)
    if rng.random() < 0.2:
        lengths, shape = np.concatenate([lengths, [0]]), [len(lengths) + 1]
    tensors = list(file.tensors)
    tensors[number] = tensors[number]._replace(shape=shape, data=(lengths % 2**32).astype("<u4").tobytes())
    return file._replace(tensors=tensors)


def edit_scales(rng: Random, file: SafeFile) -> SafeFile:
    if (number := _part(file, rng, ":scales")) is None:
        return file
    tensor = file.tensors[number]
    values = np.frombuffer(tensor.data, "<f4").copy()
    if rng.random() < 0.7:
        values[rng.randrange(len(values))] = rng.choice(SCALES)
        shape = list(tensor.shape)
    else:
        shape = rng.choice([[], [1], [24], [48], [24, 24], [48, 24], [2, 8], [2, 8, 12], [40, 24]])
        values = np.array([abs(rng.gauss(0, 1)) for _ in range(int(np.prod(shape)))], "<f4")
    tensors = list(file.tensors)
    tensors[number] = tensor._replace(shape=shape, data=values.tobytes())
    return file._replace(tensors=tensors)


def edit_told(rng: Random, file: SafeFile) -> SafeFile:
    """The coding or the shape in the metadata."""
    if not (keys := [key for key in file.metadata if key.endswith(":coding")]):
        return file
    key = rng.choice(keys)
    coding, _, shape = file.metadata[key].partition(" ")
    odd = [f"ternary {shape}", f"int8 {shape}", f"{coding} 24,25", f"{coding} 576", f"{coding} 24,24,1", coding]
    odd += [f"{coding}  {shape}", f"{coding} 0,24", f"{coding} {'9' * 18}", f"{coding} {'9' * 18},{'9' * 18}"]
    odd += [f"{coding} 024,24", f"{coding} ٢٤,24", f"{coding} -24,-24", f"{coding} {shape},", f"int4 {shape}", ""]
    metadata = dict(file.metadata)
    told = rng.choice(odd)
    if rng.random() < 0.2:
        told = metadata.pop(key)
        key = rng.choice(["a:coding", ":coding", key.replace(":coding", ":coding:coding"), "score.weight:coding"])
    return file._replace(metadata=metadata | {key: told})


CHANGES = (edit_stream, edit_stream, edit_stream, edit_lengths, edit_scales, edit_scales, edit_told)


def change(rng: Random, files: Files) -> str:
    file = take_apart(files[SINGLE]) if SINGLE in files else None
    if file is None or not any(key.endswith(":coding") for key in file.metadata):
        return "nothing"
    how = rng.choice(CHANGES)
    try:
        files[SINGLE] = how(rng, file).content()
    except (ValueError, IndexError, TypeError, AttributeError):  # an earlier change spoiled what this one needs
        return "nothing"
    return how.__name__
