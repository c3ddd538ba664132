"""One case: a mutated submission goes to the door and to the worker, and what becomes of it is judged."""

import shutil
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.match import check_against_plan
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused
from foldind.memory import reset_peak, resident_bytes
from foldind.merging.record import Record
from foldind.worker.fold import fold_submission
from foldind.worker.messages import FoldRequest, Job

from tests.mutations.bases import IGNORE, Base, make
from tests.mutations.claim import Contradiction
from tests.mutations.comparison import compare
from tests.mutations.mutation import mutate, original
from tests.mutations.oracle import claims
from tests.mutations.originals import Files
from tests.mutations.outcome import Case, Outcome, Verdict
from tests.support.wire import write_files

SPARE_BYTES = 200 * 1000**2


def judge_case(root: Path, case: Case) -> Outcome:
    """Make a mutation, submit it, and judge what becomes of it."""
    first = original(case.format)
    return judge(root, _base(root, first.base), mutate(*case).files, partial=first.partial)


_base = cache(make)


def judge(root: Path, base: Base, files: Files, *, partial: bool) -> Outcome:
    """Submit files to a base, and judge what becomes of them."""
    for folder in ("submission", "state", "snapshot"):
        shutil.rmtree(root / folder, ignore_errors=True)
    submission = write_files(root / "submission", files)
    size = sum(map(len, files.values()))
    outcome = attempt(lambda: _submit(root, base, submission, partial=partial), size)
    if outcome.verdict is Verdict.ACCEPTED:
        try:
            compare(root, base, claims(submission, base, partial=partial))
        except (Contradiction, AssertionError) as error:
            return outcome._replace(verdict=Verdict.FAILED, reason=f"accepted, and {error}")
    return outcome


def attempt(submit: Callable[[], None], size: int) -> Outcome:
    """Submit so many bytes, and judge how it ends and what it takes."""
    reset_peak()
    before, began = resident_bytes("VmRSS"), time.monotonic()
    try:
        submit()
        verdict, reason = Verdict.ACCEPTED, ""
    except CheckpointRefused as refusal:
        verdict, reason = Verdict.REFUSED, str(refusal)
        if not refusal.hint or not refusal.reason or not reason.isprintable():
            verdict, reason = Verdict.FAILED, f"the refusal is no sentence with a hint: {reason!r}"
    except Exception:
        verdict, reason = Verdict.FAILED, traceback.format_exc()
    seconds, grown = time.monotonic() - began, resident_bytes("VmHWM") - before
    if grown > (most := 2 * size + SPARE_BYTES):
        verdict, reason = Verdict.FAILED, f"it took {grown} bytes of memory, and {most} are allowed"
    return Outcome(verdict, reason, seconds, grown)


def _submit(root: Path, base: Base, submission: Path, *, partial: bool) -> None:
    """As intake/admission.py and then the worker do."""
    check_against_plan(open_checkpoint(submission, base.limits), base.plan, ignore=IGNORE, partial=partial)
    for folder in ("state", "snapshot"):
        (root / folder).mkdir()
    job = Job(
        base=str(base.folder),
        plan=str(base.plan_file),
        rule="opcm",
        hyper_parameters={},
        publication="",
        backend="torch",
        threads=1,
        memory_budget=2**30,
        publish=("model", "adapter"),
        adapter_rank=0,
    )
    request = FoldRequest(
        job=job,
        record=Record(0, 0.0, 0.0),
        max_rank=0,
        submission=str(submission),
        vocab=VocabPolicy.SAME,
        seed="",
        take_out=False,
        accumulated="",
        bases=str(root / "bases"),
        state_folder=str(root / "state"),
        new_bases=str(root / "new_bases"),
        snapshot_folder=str(root / "snapshot"),
    )
    fold_submission(request, lambda progress: None)
