"""What a snapshot says of itself: its manifest and its model cards."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from foldind.merging.record import Record
from foldind.state.records import Submission, Version
from foldind.state.snapshots import ADAPTER_FOLDER, MODEL_CARD
from foldind.worker.messages import AdapterStatistics, FoldResult, PublishResult

LINEAGE_SHOWN = 50


def manifest(
    version: int,
    parent: int,
    submission: Submission,
    result: FoldResult,
    *,
    base_digest: str,
    merge: Mapping[str, Any],
    publication: str,
) -> dict[str, Any]:
    """Return the manifest of a version but for its files.

    Args:
      version: number of the version.
      parent: the version it was made from; 0 for the base.
      submission: what it added.
      result: of the fold.
      base_digest: of the base.
      merge: the settings that decide the bytes of a merge.
      publication: how the state was published.
    """
    return {
        "format": 1,
        "version": version,
        "parent": parent,
        **_origin(base_digest, merge, publication),
        "submission": {
            "name": submission.name,
            "labels": dict(sorted(submission.labels.items())),
            "content_digest": submission.content_digest,
            "partial": submission.partial,
            **({"takes_out": True} if submission.takes_out else {}),
            **({"common_rows": common_rows(submission)} if submission.common_rows else {}),
        },
        **_figures(result.record, result, {"task_vector_norm": result.task_vector_norm, "dropped": result.dropped}),
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


def model_cards(
    version: int,
    change: str,
    ancestors: Sequence[Version],
    result: FoldResult | PublishResult,
    *,
    submissions: int,
    rule: str,
) -> dict[str, str]:
    """Return the model cards of a version: name of the file -> text.

    Args:
      version: number of the version.
      change: what distinguishes it from its parent, in a few words.
      ancestors: of the version, newest first; the first LINEAGE_SHOWN are listed.
      result: of what made it.
      submissions: how many it holds.
      rule: the merge rule, and how it publishes.
    """
    rows = [(version, change)] + [(ancestor.version, ancestor.change) for ancestor in ancestors]
    lineage = "\n".join(f"| v{number} | {_cell(name)} |" for number, name in rows[:LINEAGE_SHOWN])
    more = "\n\nOlder ones are not listed." if len(ancestors) >= LINEAGE_SHOWN else ""
    checkpoints = f"{submissions} fine-tuned checkpoints" if submissions > 1 else "one fine-tuned checkpoint"
    card = f"""\
---
tags:
- model-merging
- foldin
---

# Merged model v{version}

The base with {checkpoints} folded into it by Foldin,
with the merge rule {rule} (lambda {result.lambda_:.6f}). `foldin.json` has the
figures and the digest of every file.

| version | change |
|---|---|
{lineage}{more}
"""
    if result.adapter is None or result.adapter.rank == 0:
        return {MODEL_CARD: card}
    card += f"\nA PEFT adapter of the merged update is in `{ADAPTER_FOLDER}/`.\n"
    return {MODEL_CARD: card, f"{ADAPTER_FOLDER}/{MODEL_CARD}": _adapter_card(version, checkpoints, result.adapter)}


def variant_manifest(
    version: int,
    parent: Version,
    result: PublishResult,
    *,
    base_digest: str,
    merge: Mapping[str, Any],
    publication: str,
) -> dict[str, Any]:
    """Return the manifest, but for its files, of a version that is its parent's state, published in another way.

    Args:
      version: number of the version.
      parent: of it.
      result: of the publication.
      base_digest: of the base.
      merge: the settings that decide the bytes of a merge.
      publication: how the state was published.
    """
    return {
        "format": 1,
        "version": version,
        "parent": parent.version,
        "variant": True,
        **_origin(base_digest, merge, publication),
        **_figures(parent.record, result, {}),
    }


def _origin(base_digest: str, merge: Mapping[str, Any], publication: str) -> dict[str, Any]:
    return {"base_digest": base_digest, "merge": dict(merge), "publication": publication}


def _figures(record: Record, result: FoldResult | PublishResult, of_the_fold: Mapping[str, float]) -> dict[str, Any]:
    # Equal merges are equal bytes: the order of the keys is a part of them.
    return {
        "submissions": record.submissions,
        "lambda": result.lambda_,
        "accumulated_norm": record.accumulated_norm,
        **of_the_fold,
        "mean_task_vector_norm": record.mean_task_vector_norm,
        **({"adapter": asdict(result.adapter)} if result.adapter else {}),
    }


def _adapter_card(version: int, checkpoints: str, adapter: AdapterStatistics) -> str:
    ranks = sorted({2**power for power in range(adapter.rank.bit_length()) if 2**power < adapter.rank} | {adapter.rank})
    rows = "\n".join(f"| {rank} | {_percent(adapter.retained[rank - 1])} |" for rank in ranks)
    missing = ", ".join(f"`{name}`" for name in adapter.left_out[:20])
    more = f" and {len(adapter.left_out) - 20} more" if len(adapter.left_out) > 20 else ""
    left_out = f"\nNot in it, for PEFT has no place for them: {missing}{more}.\n" if missing else ""
    return f"""\
---
library_name: peft
tags:
- lora
- model-merging
- foldin
---

# Merged model v{version}, as an adapter

The merged update of {checkpoints}, folded by Foldin. The factors of each
matrix are in the order of its singular values, so that their first columns and rows are the best approximation of any
lower rank; the rank of this copy is in `adapter_config.json`.

| rank | share of the merged update's energy (squared norm) |
|---|---|
{rows}
{left_out}"""


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _cell(text: str) -> str:
    return "".join(character if character.isalnum() or character in " .-_/:@+" else " " for character in text) or "-"
