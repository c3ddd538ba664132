"""What a snapshot says of itself; above all what it does not say: when, where, and by which random id it was made."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from foldind.checkpoints.plan import Treatment
from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy
from foldind.documents import LINEAGE_SHOWN, manifest, model_cards, variant_manifest
from foldind.merging.record import Record
from foldind.state.durable import FileDigest, digest_file
from foldind.state.records import Submission, SubmissionState, Version, VersionState
from foldind.worker.messages import AdapterStatistics, FoldResult, PublishResult, TensorStatistics

from tests.support.daemon import Daemon
from tests.support.models import base_tensors, make_base
from tests.support.wire import Wire, fine_tuned, single, state, write_files

ROW = re.compile(r"^\| v\d.*", re.MULTILINE)


def submission(
    name: str = "task",
    labels: dict[str, str] | None = None,
    common_rows: dict[str, RowCounts] | None = None,
) -> Submission:
    return Submission(
        uploaded=True,
        id="1a2b3c-random",
        number=1,
        name=name,
        labels=labels or {},
        state=SubmissionState.MERGING,
        reason="",
        version=0,
        files={"model.safetensors": FileDigest(10, "0" * 64)},
        partial=False,
        vocab=VocabPolicy.COMMON if common_rows else VocabPolicy.SAME,
        common_rows=common_rows or {},
        forced=False,
        takes_out=False,
        took_out="",
        attempts=2,
        content_digest="c" * 64,
        created_at=1234567890.5,
        updated_at=1234567891.5,
        bytes_kept=True,
    )


def result(submissions: int = 1) -> FoldResult:
    return FoldResult(
        dropped=0.0,
        bases_computed=0,
        adapter=None,
        sketch="",
        record=Record(submissions, 2.0 * submissions, 3.0),
        task_vector_norm=2.0,
        lambda_=1.5,
        tensors=(TensorStatistics("w", Treatment.PROJECTED, 2.0, 0.5, 3),),
        state_files={},
        snapshot_files={},
        peak_resident_bytes=987654321,
    )


def ancestors(count: int) -> list[Version]:
    return [
        Version(
            version=number,
            parent=number - 1,
            state=VersionState.PUBLISHED,
            submission_id=f"id{number}",
            submission_name=f"task{number}",
            created_at=0,
            merge_seconds=0,
            rule="opcm",
            publication="norm",
            variant=False,
            submissions=number,
            lambda_=1,
            accumulated_norm=1,
            task_vector_norm=1,
            task_vector_norm_sum=1,
            state_files={},
            files={},
        )
        for number in range(count, 0, -1)
    ]


def test_manifest() -> None:
    document = manifest(
        3,
        2,
        submission(labels={"b": "2", "a": "1"}),
        result(3),
        base_digest="b" * 64,
        merge={"rule": "opcm"},
        publication="norm",
    )
    assert (document["version"], document["parent"], document["lambda"]) == (3, 2, 1.5)
    assert document["mean_task_vector_norm"] == 2.0
    assert list(document["submission"]["labels"]) == ["a", "b"]
    assert document["tensors"]["w"] == {
        "treatment": "projected",
        "task_vector_norm": 2.0,
        "kept": 0.5,
        "split_rank": 3,
        "rank": 0,
    }
    text = json.dumps(document)
    for secret in ("1a2b3c-random", "1234567890", "987654321", "2009"):
        assert secret not in text


def test_the_keys_of_a_manifest_keep_their_order() -> None:
    """Of both kinds: it decides their bytes."""
    settings = {"base_digest": "b" * 64, "merge": {"rule": "opcm"}, "publication": "norm"}
    adapter = AdapterStatistics(1, (1.0,), ())
    origin = ["base_digest", "merge", "publication"]
    merged = manifest(1, 0, submission(), replace(result(), adapter=adapter), **settings)  # type: ignore[arg-type]
    assert list(merged) == [
        *("format", "version", "parent", *origin, "submission", "submissions", "lambda", "accumulated_norm"),
        *("task_vector_norm", "dropped", "mean_task_vector_norm", "adapter", "tensors"),
    ]
    (parent,) = ancestors(1)
    variant = variant_manifest(2, parent, PublishResult(1.5, adapter, {}, 0), **settings)  # type: ignore[arg-type]
    assert list(variant) == [
        *("format", "version", "parent", "variant", *origin, "submissions", "lambda", "accumulated_norm"),
        *("mean_task_vector_norm", "adapter"),
    ]


def test_a_manifest_tells_of_common_rows_and_says_nothing_where_there_are_none() -> None:
    settings = {"base_digest": "b" * 64, "merge": {"rule": "opcm"}, "publication": "norm"}
    without = manifest(1, 0, submission(), result(), **settings)  # type: ignore[arg-type]
    counted = manifest(1, 0, submission(common_rows={"w": RowCounts(12, 10)}), result(), **settings)  # type: ignore[arg-type]
    assert without["submission"].keys() == {"name", "labels", "content_digest", "partial"}
    assert counted["submission"].pop("common_rows") == {"w": {"folded": 10, "submission": 12, "base": 10}}
    assert json.dumps(counted) == json.dumps(without)


def cards(version: int, added: str, result: FoldResult, before: list[Version]) -> dict[str, str]:
    rule = "`opcm`, published as `norm`"
    return model_cards(version, added, before, result, submissions=result.record.submissions, rule=rule)


def test_a_card_lists_the_lineage() -> None:
    card = cards(3, "third", result(3), ancestors(2))["README.md"]
    assert ROW.findall(card) == [
        "| v3 | third |",
        "| v2 | task2 |",
        "| v1 | task1 |",
    ]
    assert "not listed" not in card
    assert "3 fine-tuned checkpoints" in card
    assert card.startswith("---\n"), "the Hub reads the front matter"


@pytest.mark.parametrize("before", [LINEAGE_SHOWN - 1, LINEAGE_SHOWN, 10 * LINEAGE_SHOWN])
def test_a_card_does_not_grow_for_ever(before: int) -> None:
    shown = ancestors(before)[:LINEAGE_SHOWN]
    card = cards(before + 1, "task", result(before + 1), shown)["README.md"]
    assert len(ROW.findall(card)) == LINEAGE_SHOWN
    left_out = before + 1 - LINEAGE_SHOWN
    assert ("Older ones are not listed" in card) is (left_out > 0)


@pytest.mark.parametrize("name", ["a | b |", "<script>alert(1)</script>", "[link](http://x)", "`code` *bold*", ""])
def test_a_name_is_text_and_no_markup(name: str) -> None:
    card = cards(1, name, result(), [])["README.md"]
    (row,) = ROW.findall(card)
    assert row.count("|") == 3
    assert not set("<>[]()`*") & set(row)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Daemon]:
    """A second daemon, of an equal base, whose paths are others."""
    base = make_base(tmp_path / "some" / "other" / "place" / "base")
    with Daemon(tmp_path / "another" / "state", base, "--allowed-root", str(tmp_path), "--lease", "7") as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def parents(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()


def test_equal_merges_are_equal_bytes(daemon: Daemon, elsewhere: Daemon, tmp_path: Path) -> None:
    tasks = [single(fine_tuned(base_tensors())) for _ in range(3)]
    with Wire(daemon) as wire:
        for number, files in enumerate(tasks):
            uploaded = wire.upload(files, name=f"task{number}", labels={"a": "1", "b": "2"}, request_id=f"r{number}")
            assert state(wire.settled(uploaded.id)) == "MERGED"
    with Wire(elsewhere) as wire:
        assert state(wire.upload({"model.safetensors": b"no tensors"})) == "REJECTED"
        for number, files in enumerate(tasks):
            folder = write_files(tmp_path / f"task{number}", files)
            submitted = wire.submit_path(folder, name=f"task{number}", labels={"b": "2", "a": "1"})
            assert state(wire.settled(submitted.id)) == "MERGED"
    for version in range(1, len(tasks) + 1):
        for kind in ("snapshots", "merge"):
            here, there = (running.state / kind / f"v{version}" for running in (daemon, elsewhere))
            if kind == "merge" and not here.exists():
                continue  # only those of the newest two are kept
            names = {path.name for path in here.iterdir()}
            assert names == {path.name for path in there.iterdir()}
            for name in names:
                assert digest_file(here / name) == digest_file(there / name), name


def test_the_card_of_an_adapter_tells_what_each_rank_holds() -> None:
    adapter = AdapterStatistics(5, (0.5, 0.7, 0.8, 0.9, 0.98765), ("logit_scale",))
    found = cards(1, "task", replace(result(), adapter=adapter), [])
    assert found.keys() == {"README.md", "adapter/README.md"}
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", found["adapter/README.md"], re.MULTILINE)
    assert rows == [("1", "50.00 %"), ("2", "70.00 %"), ("4", "90.00 %"), ("5", "98.77 %")]
    assert "no place for them: `logit_scale`." in found["adapter/README.md"]


def test_without_an_adapter_there_is_no_card_of_one() -> None:
    adapter = AdapterStatistics(0, (0.0,), ("a.weight",))
    assert cards(1, "task", replace(result(), adapter=adapter), []).keys() == {"README.md"}
