"""What daemon and worker say to each other arrives as it was sent."""

import math
from typing import get_args

import pytest
from foldind.checkpoints.plan import Treatment
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.merging.record import Record
from foldind.state.durable import FileDigest
from foldind.worker.messages import (
    AdapterStatistics,
    BasisDone,
    BasisRequest,
    BasisTarget,
    Failed,
    FoldRequest,
    FoldResult,
    Job,
    Message,
    Progress,
    PublishRequest,
    PublishResult,
    Ready,
    Refused,
    TensorStatistics,
    decode,
    encode,
)

FILES = {"model.safetensors": FileDigest(10, "a" * 64), "adapter/adapter_config.json": FileDigest(0, "b" * 64)}
ADAPTER = AdapterStatistics(2, (0.25, 1.0), ("logit_scale",))
JOB = Job(
    base="/base",
    plan="/plan.json",
    rule="dare",
    hyper_parameters={"density": 0.5, "cross_blocks": "keep", "flag": True, "count": 1, "nothing": None},
    publication="flat:2.0",
    backend="numpy",
    threads=2,
    memory_budget=2**31,
    publish=("model", "adapter"),
    adapter_rank=16,
)
RECORD = Record(2, 0.1 + 0.2, 1e-300)
FOLD_RESULT = FoldResult(
    record=RECORD,
    task_vector_norm=5e-324,
    lambda_=1.5,
    dropped=0.0,
    tensors=(
        TensorStatistics("ä", Treatment.PROJECTED, 2.0, 0.5, 3),
        TensorStatistics("b\n", Treatment.SUMMED, 0.0, 1.0, 0, rank=4),
    ),
    bases_computed=1,
    adapter=ADAPTER,
    sketch="AAAA",
    state_files=FILES,
    snapshot_files={},
    peak_resident_bytes=2**40,
)
MESSAGES: tuple[Message, ...] = (
    FoldRequest(
        job=JOB,
        record=RECORD,
        max_rank=8,
        submission="/submission with a \udcff in its name",
        vocab=VocabPolicy.COMMON,
        seed="c" * 64,
        take_out=True,
        accumulated="",
        bases="/bases",
        state_folder="/state",
        new_bases="/new",
        snapshot_folder="/snapshot",
    ),
    PublishRequest(JOB, RECORD, accumulated="/state", bases=("/new", "/kept"), snapshot_folder="/snapshot"),
    BasisRequest(
        "opcm",
        {"alpha": 0.5},
        "torch",
        1,
        "/state",
        (BasisTarget("experts", (0, 3), "/a.tmp"), BasisTarget("query", None, "/b.tmp")),
    ),
    Ready(123),
    Progress("folding", 1, 2, "query"),
    FOLD_RESULT,
    PublishResult(1.0, None, FILES, 5),
    PublishResult(1.0, ADAPTER, {}, 5),
    BasisDone(),
    Refused("it equals the base", "submit the fine-tuned checkpoint"),
    Failed("no room", 28),
    Failed("a mistake"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    arrived = decode(encode(message))
    assert arrived == message
    assert repr(arrived) == repr(message), "in its types too: a tuple is no list, and a digest no tuple"


def test_every_kind_of_message_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line(message: Message) -> None:
    assert encode(message).index(b"\n") == len(encode(message)) - 1


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_arrives(figure: float) -> None:
    arrived = decode(encode(PublishResult(figure, None, {}, 0)))
    assert isinstance(arrived, PublishResult)
    assert repr(arrived.lambda_) == repr(figure)
