"""The metrics of a follower, as a file for the textfile collector of node_exporter."""

from pathlib import Path
from threading import Lock

from foldin.follower.durable import temporary_of
from foldin.follower.events import OUTCOMES
from foldin.follower.record import Record


class Metrics:
    """A file that always tells of the present; safe to use from several threads.

    Args:
      path: of the file; None: there is none.
      alias: the label of all samples.
      record: what was done so far.
    """

    def __init__(self, path: Path | None, alias: str, record: Record) -> None:
        self._path = path
        self._alias = alias
        self._record = record
        self._target: int | None = None
        self._lock = Lock()
        self._complaint = ""

    def show_target(self, version: int) -> None:
        """Tell which version the alias names now."""
        with self._lock:
            self._target = version
            self._write()

    def show(self, record: Record) -> None:
        """Tell what was done."""
        with self._lock:
            self._record = record
            self._write()

    def complaint(self) -> str:
        """Return why the file could not be written since the last call, or nothing."""
        with self._lock:
            complaint, self._complaint = self._complaint, ""
            return complaint

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = temporary_of(self._path)
        try:
            temporary.write_text(metrics_text(self._alias, self._record, self._target))
            temporary.chmod(0o644)  # whatever the umask: the collector is another user
            temporary.replace(self._path)
        except OSError as error:
            self._complaint = f"cannot write {self._path}: {error.strerror or error}."


def metrics_text(alias: str, record: Record, target: int | None) -> str:
    """Return the samples of one follower in Prometheus' text format.

    Args:
      target: the version that the alias names; None: not known yet, or none so far.
    """
    applied = record.good or 0
    lines: list[str] = []

    def family(name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
        lines.extend([f"# HELP foldin_follow_{name} {about}", f"# TYPE foldin_follow_{name} {kind}"])
        lines.extend(f'foldin_follow_{name}{{alias="{alias}"{labels}}} {value}' for labels, value in samples)

    family("version", "gauge", "The version that every hook last succeeded for; 0: none.", ("", applied))
    if target is not None:
        family("target_version", "gauge", "The version that the alias names.", ("", target))
        family(
            "version_lag",
            "gauge",
            "The alias's version number minus the applied one: 0 where they are the same, negative while an alias that "
            "was moved back is not followed yet.",
            ("", target - applied),
        )
    outcomes = [(f',outcome="{outcome}"', float(record.swaps.get(outcome, 0))) for outcome in OUTCOMES]
    family("swaps_total", "counter", "Swaps by how they ended.", *outcomes)
    if record.last_swap is not None:
        family(
            "last_swap_timestamp_seconds", "gauge", "When a version was last applied.", ("", round(record.last_swap, 3))
        )
    return "\n".join(lines) + "\n"
