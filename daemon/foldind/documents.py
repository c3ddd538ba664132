"""What a snapshot says of itself: its manifest and its model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from foldind.state.records import Submission, Version
from foldind.worker.messages import FoldResult

LINEAGE_SHOWN = 50


def manifest(
    version: int,
    parent: int,
    submission: Submission,
    result: FoldResult,
    *,
    base_digest: str,
    merge: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a version but for its files.

    Args:
      version: number of the version.
      parent: the version it was made from; 0 for the base.
      submission: what it added.
      result: of the fold.
      base_digest: of the base.
      merge: the settings that decide the bytes of a merge.
    """
    return {
        "format": 1,
        "version": version,
        "parent": parent,
        "base_digest": base_digest,
        "merge": dict(merge),
        "submission": {
            "name": submission.name,
            "labels": dict(sorted(submission.labels.items())),
            "content_digest": submission.content_digest,
            "partial": submission.partial,
            **({"common_rows": common_rows(submission)} if submission.common_rows else {}),
        },
        "submissions": result.submissions,
        "lambda": result.lambda_,
        "accumulated_norm": result.accumulated_norm,
        "task_vector_norm": result.task_vector_norm,
        "dropped": result.dropped,
        "mean_task_vector_norm": result.task_vector_norm_sum / result.submissions,
        "tensors": {
            tensor.name: {
                "treatment": tensor.treatment,
                "task_vector_norm": tensor.task_vector_norm,
                "kept": tensor.kept,
                "split_rank": tensor.split_rank,
                "rank": tensor.rank,
            }
            for tensor in result.tensors
        },
    }


def common_rows(submission: Submission) -> dict[str, dict[str, int]]:
    """Return the tensors of a submission of which only the rows are folded that the base has too, and their counts."""
    return {
        name: {"folded": rows.common, "submission": rows.submission, "base": rows.base}
        for name, rows in submission.common_rows.items()
    }


def model_card(
    version: int, submission: Submission, result: FoldResult, ancestors: Sequence[Version], rule: str
) -> str:
    """Return the README.md of a version.

    Args:
      version: number of the version.
      submission: what it added.
      result: of the fold.
      ancestors: of the version, newest first; the first LINEAGE_SHOWN are listed.
      rule: name of the merge rule.
    """
    rows = [(version, submission.name)] + [(ancestor.version, ancestor.submission_name) for ancestor in ancestors]
    lineage = "\n".join(f"| v{number} | {_cell(name)} |" for number, name in rows[:LINEAGE_SHOWN])
    left_out = result.submissions - min(len(rows), LINEAGE_SHOWN)
    more = f"\n\n{left_out} older ones are not listed." if left_out else ""
    return f"""\
---
tags:
- model-merging
- foldin
---

# Merged model v{version}

The base with {result.submissions} fine-tuned checkpoint{"s" if result.submissions > 1 else ""} folded into it, one
after the other, by Foldin with the merge rule `{rule}` (lambda {result.lambda_:.6f}). `foldin.json` has the figures of
every tensor and the digest of every file.

| version | added |
|---|---|
{lineage}{more}
"""


def _cell(text: str) -> str:
    return "".join(character if character.isalnum() or character in " .-_/:@+" else " " for character in text) or "-"
