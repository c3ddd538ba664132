"""A mutation: some changes of a valid submission, the same for the same seed and number."""

from functools import cache
from random import Random
from typing import NamedTuple

from tests.mutations import changes_bytes, changes_coded, changes_documents, changes_header, changes_tensors
from tests.mutations.originals import FORMATS, Files, Original

_CHANGES = (changes_bytes, changes_header, changes_tensors, changes_documents, changes_coded)


class Mutation(NamedTuple):
    files: Files
    told: str
    """What was changed, for people."""


original = cache(lambda name: FORMATS[name]())


def mutate(format_: str, seed: int, number: int) -> Mutation:
    rng = Random(f"{seed} {number} {format_}")
    first: Original = original(format_)
    files, told = dict(first.files), []
    wanted = rng.choice([1, 1, 1, 2, 3])
    while len(told) < wanted:
        try:
            done = rng.choice(_CHANGES).change(rng, files)
        except RecursionError:  # an earlier change nested it so deep that it cannot be written again
            done = "nothing"
        if done != "nothing" or rng.random() < 0.1:  # which may be all that is left to do
            told.append(done)
    return Mutation(files, ", then ".join(told))
