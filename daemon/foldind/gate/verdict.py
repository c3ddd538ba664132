"""What the gate's command said of a version."""

import math
import signal

from foldind.programs import Ended, json_object
from foldind.state.records import Gate, GateVerdict

MOST_SCORES = 64
LONGEST_NAME = 64
"""Characters of the name of a score."""
LONGEST_ANSWER = 64 * 1024
"""Bytes."""


def judge(ended: Ended, timeout: float) -> Gate:
    """Return the verdict: it passed if it ended with status 0, and what it measured can be told.

    Args:
      ended: what came of the command.
      timeout: seconds that it could take.
    """
    if len(ended.output) > LONGEST_ANSWER:
        return Gate(GateVerdict.FAILED, f"the gate's command printed more than {LONGEST_ANSWER} bytes")
    try:
        scores, trouble = scores_of(ended.output), ""
    except ValueError as error:
        scores, trouble = {}, str(error)
    if ended.status == 0:
        verdict = GateVerdict.FAILED if trouble else GateVerdict.PASSED
        return Gate(verdict, f"the gate's command {trouble}" if trouble else "", scores)
    what = f"took more than {timeout:g} s" if ended.status is None else _ending(ended.status)
    said = ended.last_words.rpartition("\n")[2].strip()
    return Gate(GateVerdict.FAILED, f"the gate's command {what}" + (f": {said}" if said else ""), scores)


def scores_of(output: bytes) -> dict[str, float]:
    """Return the numbers of the JSON object that a command printed, by name; none if it printed no such object.

    Raises:
      ValueError: it printed what is no score, or what was meant as a JSON object and is none.
    """
    try:
        told = json_object(output)
    except ValueError:
        last = output.strip().rpartition(b"\n")[2]
        if last.startswith(b"{") or last.endswith(b"}"):
            raise ValueError("printed no valid JSON object; print it as the last line, or nothing else") from None
        return {}
    scores = {name: value for name, value in told.items() if type(value) in (int, float)}
    if len(scores) > MOST_SCORES:
        raise ValueError(f"printed {len(scores)} scores; {MOST_SCORES} are the most")
    for name, value in scores.items():
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise ValueError(f"printed a score named {name[:LONGEST_NAME]!r}; names are short and printable")
        try:
            scores[name] = float(value)
        except OverflowError:
            scores[name] = math.inf
        if not math.isfinite(scores[name]):
            raise ValueError(f"printed a score {name!r} that is no finite number")
    return scores


def _ending(status: int) -> str:
    number = -status if status < 0 else status - 128  # as this process sees it, or as a shell says it
    if number in signal.valid_signals():
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    return f"ended with status {status}"
