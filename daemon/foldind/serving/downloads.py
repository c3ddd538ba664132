"""How often versions were downloaded over HTTP since the daemon started."""

from collections import Counter

_WEIGHTS = ".safetensors"


class Downloads:
    """Counts the weight files that went out to their last byte."""

    def __init__(self) -> None:
        self._whole: dict[int, Counter[str]] = {}

    def count(self, version: int, name: str) -> None:
        """Record that the last byte of a file was sent."""
        if name.endswith(_WEIGHTS):
            self._whole.setdefault(version, Counter())[name] += 1

    def of(self, version: int) -> int:
        """Return how often a version was downloaded: as often as that one of its weight files that was sent most."""
        return max(self._whole.get(version, Counter[str]()).values(), default=0)
