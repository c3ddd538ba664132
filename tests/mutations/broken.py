"""Ways to judge a case that end the process, or never end; without torch, so that the next one starts at once."""

import os
import threading
from pathlib import Path

from tests.mutations.outcome import Case, Outcome, Verdict

CRASH, HANG, SOUND = range(3)


def judge_case(root: Path, case: Case) -> Outcome:
    if case.number == CRASH:
        os.abort()
    if case.number == HANG:
        threading.Event().wait()
    return Outcome(Verdict.ACCEPTED, "", 0, 0)
