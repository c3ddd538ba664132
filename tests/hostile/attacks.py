"""Every attack that both doors have to withstand, with the words that its sender must be told."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.hostile import checkpoints, files
from tests.hostile.checkpoints import Files, Tensors
from tests.support.wire import SINGLE

_LONG_FOR_A_SMALL_BASE = {"header just too long", "a long name twice"}


@dataclass(frozen=True)
class Attack:
    """One way to be hostile."""

    name: str
    build: Callable[[Tensors], Files]
    words: str

    @property
    def drop(self) -> str:
        """A file name of it."""
        return re.sub(r"\W+", "-", self.name)


def _of_a_file(name: str, content: Callable[[], bytes], words: str) -> Attack:
    said = "states a header of" if name in _LONG_FOR_A_SMALL_BASE else words
    return Attack(f"file, {name}", lambda _: {SINGLE: content()}, said)


def _all() -> Mapping[str, Attack]:
    attacks = [_of_a_file(name, content, words) for name, (content, words) in files.ATTACKS.items()]
    attacks += [Attack(name, build, words) for name, (build, words) in checkpoints.ATTACKS.items()]
    return {attack.name: attack for attack in attacks}


ATTACKS = _all()
