"""The durable record of what was measured: results.jsonl, to which one line is added after each piece of work.

Invariants: a line that was added is on the disk; nothing in the file is ever changed. A last line that was cut short by
a crash never counted, and is taken away.
"""

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foldind.errors import StateError
from foldind.evaluation.orders import Order
from foldind.state.durable import sync

FORMAT = 1

_ELSEWHERE = "name another folder with --out, or remove this one"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: results of another subject cannot be told together with these."""

    base: str
    """Digest."""
    tasks: Mapping[str, str]
    """Name -> digest of its checkpoint."""
    command: str
    """The evaluation command."""
    parameters: int
    """Of the base; tied ones count once."""
    backend: str
    """Linear algebra, where a rule does not say."""


@dataclass(frozen=True)
class Step:
    """What was measured after one fold."""

    accuracy: Mapping[str, float]
    """Of the merged model, by task."""
    fold_seconds: float
    state_bytes: int
    """Of the accumulated state."""


class Results:
    """results.jsonl; as a context manager, its exclusive use.

    Raises:
      StateError: it is damaged, or in use.
      OSError: it cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = -1
        self.subject: Subject | None = None
        self.base: dict[str, float] = {}
        """Accuracy of the base, by task."""
        self.experts: dict[str, float] = {}
        """Accuracy of every task's own fine-tuned model on it."""
        self.rules: dict[str, Mapping[str, Any]] = {}
        """The settings that a rule's name stands for."""
        self.steps: defaultdict[tuple[str, Order], dict[int, Step]] = defaultdict(dict)
        """What is known of an order through a rule, by the number of folds."""

    def __enter__(self) -> Self:
        new = not self._path.exists()
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
            if new:
                sync(self._path.parent)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StateError(f"{self._path} is in use by another process", "wait until it has ended") from error
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def claim(self, subject: Subject) -> None:
        """Record what is evaluated, or check that it is what was evaluated before. Raises StateError."""
        if self.subject is None:
            self._add({"kind": "subject", "format": FORMAT, **asdict(subject)})
            return
        for field, told in (
            ("base", "of another base"),
            ("tasks", "of other tasks or checkpoints"),
            ("command", f"by another command, {self.subject.command!r}"),
            ("backend", f"by the linear algebra of {self.subject.backend}"),
        ):
            if getattr(self.subject, field) != getattr(subject, field):
                raise StateError(f"{self._path.parent} holds results {told}", _ELSEWHERE)

    def add_rule(self, rule: str, settings: Mapping[str, Any]) -> None:
        """Record what a rule's name stands for, or check that it is what it was. Raises StateError."""
        if rule not in self.rules:
            self._add({"kind": "rule", "rule": rule, "settings": dict(settings)})
        elif (before := self.rules[rule]) != settings:
            changed = ", ".join(name for name in {**before, **settings} if before.get(name) != settings.get(name))
            raise StateError(f"{self._path.parent} holds results of {rule} with another {changed}", _ELSEWHERE)

    def add_base(self, accuracy: Mapping[str, float]) -> None:
        """Record the accuracy of the base, by task."""
        self._add({"kind": "base", "accuracy": dict(accuracy)})

    def add_expert(self, task: str, accuracy: float) -> None:
        """Record the accuracy of a task's own fine-tuned model on it."""
        self._add({"kind": "expert", "task": task, "accuracy": accuracy})

    def add_step(self, rule: str, order: Order, number: int, step: Step) -> None:
        """Record what was measured after a number of folds."""
        self._add({"kind": "step", "rule": rule, "order": list(order), "step": number, **asdict(step)})

    def _add(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        while line:
            line = line[os.write(self._lock, line) :]
        sync(self._path)
        self._take(entry)

    def _read(self) -> None:
        content = self._path.read_bytes()
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not torn:  # its length was written, and its content was not
                    torn = line + b"\n"
                    break
                raise StateError(f"line {number} of {self._path} is damaged", _ELSEWHERE) from error
        os.truncate(self._lock, len(content) - len(torn))
        os.lseek(self._lock, 0, os.SEEK_END)

    def _take(self, entry: Mapping[str, Any]) -> None:
        kind, fields = entry["kind"], {name: value for name, value in entry.items() if name != "kind"}
        match kind:
            case "subject":
                if fields.pop("format") != FORMAT:
                    raise StateError(f"{self._path} was written by another release", _ELSEWHERE)
                self.subject = Subject(**fields)
            case "rule":
                self.rules[fields["rule"]] = fields["settings"]
            case "base":
                self.base = fields["accuracy"]
            case "expert":
                self.experts[fields["task"]] = fields["accuracy"]
            case "step":
                step = Step(fields["accuracy"], fields["fold_seconds"], fields["state_bytes"])
                self.steps[fields["rule"], tuple(fields["order"])][fields["step"]] = step
            case _:
                raise ValueError(kind)
