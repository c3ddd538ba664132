"""The evaluation command: a program of the user's that says how accurate a model is."""

import math
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from foldind.errors import FoldinError, InvalidRequest
from foldind.programs import Ended, json_object, run_program

MODEL, TASKS = "{model}", "{tasks}"
LONGEST_ANSWER = 16 * 1024 * 1024
"""Bytes."""

_ANSWER = 'it prints {"accuracy": {task: share}} or {task: share} as JSON, with shares in 0..1'


class Scored(StrEnum):
    """On which tasks the model after each fold is scored."""

    ALL = "all"
    """Those merged so far."""
    NEWEST = "newest"
    """The one just merged; after the last fold, all."""
    FINAL = "final"
    """None; after the last fold, all."""


class ScoringFailed(FoldinError):
    """The evaluation command failed, or its answer makes no sense."""


class ScoringCommand:
    """Runs the evaluation command.

    Args:
      text: of the command, as in a shell, though none is run; {model} stands for the folder of the model, and {tasks}
        for the names of the tasks to score, with commas between them.
      timeout: seconds that a run may take; 0: any time.

    Raises:
      InvalidRequest: it cannot be run.
    """

    def __init__(self, text: str, timeout: float = 0):
        try:
            self._arguments = shlex.split(text)
        except ValueError as error:
            raise InvalidRequest(
                f"the evaluation command {text!r} is malformed: {error}", "quote as in a shell"
            ) from error
        if MODEL not in text:
            raise InvalidRequest(
                f"the evaluation command {text!r} has no {MODEL}", f"write {MODEL} where the model's folder goes"
            )
        self._timeout = timeout
        self.chooses = TASKS in text
        """Whether it is told which tasks to score."""

    async def score(self, model: Path, tasks: Sequence[str]) -> dict[str, float]:
        """Return the accuracy of a model on tasks, a share each.

        Args:
          model: its folder.
          tasks: their names.

        Raises:
          ScoringFailed: it fails, takes too long, or does not say.
        """
        values = {MODEL: str(model.absolute()), TASKS: ",".join(tasks)}
        arguments = [_substituted(argument, values) for argument in self._arguments]
        try:
            ended = await run_program(arguments, self._timeout, LONGEST_ANSWER + 1)
        except OSError as error:
            raise ScoringFailed(
                f"the evaluation command cannot be run: {arguments[0]}: {error.strerror}", "check its name and path"
            ) from error
        if len(ended.output) > LONGEST_ANSWER:
            raise _failed(arguments, f"printed more than {LONGEST_ANSWER} bytes", ended, _ANSWER)
        if ended.status is None:
            raise _failed(arguments, f"took more than {self._timeout:g} s", ended, "see --timeout")
        if ended.status < 0:
            raise _failed(arguments, f"was ended by signal {-ended.status} ({signal.strsignal(-ended.status)})", ended)
        if ended.status:
            raise _failed(arguments, f"ended with status {ended.status}", ended)
        try:
            return _accuracies(ended.output, tasks)
        except ValueError as error:
            raise _failed(arguments, str(error), ended, _ANSWER) from error


def _substituted(argument: str, values: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], argument)


def _accuracies(answer: bytes, tasks: Sequence[str]) -> dict[str, float]:
    told = json_object(answer)
    if isinstance(told.get("accuracy"), dict):
        told = told["accuracy"]
    if missing := [task for task in tasks if task not in told]:
        raise ValueError(f"told no accuracy of {', '.join(missing)}")
    for task in tasks:
        share = told[task]
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or (isinstance(share, float) and not math.isfinite(share)):
            raise ValueError(f"told {str(share)[:80]!r} as the accuracy of {task}, which is no number")
        if not 0 <= share <= 1:
            raise ValueError(f"told {str(share)[:80]} as the accuracy of {task}, which is no share in 0..1")
    return {task: float(told[task]) for task in tasks}


def _failed(arguments: Sequence[str], what: str, ended: Ended, hint: str = "") -> ScoringFailed:
    # The last words come last: a reason that is too long is cut at its end.
    said = f"; its standard error ends with:\n{ended.last_words}" if ended.last_words else ""
    return ScoringFailed(
        f"the evaluation command {shlex.join(arguments)[:300]} {what}", f"{hint}{said}".removeprefix("; ")
    )
