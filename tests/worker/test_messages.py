"""What daemon and worker say to each other arrives as it was sent."""

import math
from typing import get_args

import pytest
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.state.durable import FileDigest
from foldind.worker.messages import (
    AdapterStatistics,
    BasisDone,
    BasisRequest,
    BasisTarget,
    Failed,
    FoldRequest,
    FoldResult,
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
FOLD_RESULT = FoldResult(
    submissions=3,
    task_vector_norm_sum=0.1 + 0.2,
    accumulated_norm=1e-300,
    task_vector_norm=5e-324,
    lambda_=1.5,
    dropped=0.0,
    tensors=(TensorStatistics("ä", "projected", 2.0, 0.5, 3), TensorStatistics("b\n", "summed", 0.0, 1.0, 0, rank=4)),
    bases_computed=1,
    adapter=ADAPTER,
    sketch="AAAA",
    state_files=FILES,
    snapshot_files={},
    peak_resident_bytes=2**40,
)
MESSAGES: tuple[Message, ...] = (
    FoldRequest(
        base="/base",
        plan="/plan.json",
        rule="dare",
        hyper_parameters={"drop_rate": 0.5, "cross_blocks": "keep", "rescale": True, "count": 1, "name": None},
        publication="flat:2.0",
        backend="numpy",
        threads=2,
        max_rank=8,
        memory_budget=2**31,
        submission="/submission with a \udcff in its name",
        vocab=VocabPolicy.COMMON,
        seed="c" * 64,
        take_out=True,
        accumulated="",
        bases="/bases",
        submissions=2,
        task_vector_norm_sum=0.3,
        accumulated_norm=0.2,
        state_folder="/state",
        new_bases="/new",
        snapshot_folder="/snapshot",
        publish=("model", "adapter"),
        adapter_rank=16,
    ),
    PublishRequest(
        base="/base",
        plan="/plan.json",
        rule="opcm",
        hyper_parameters={},
        publication="norm",
        backend="torch",
        threads=1,
        memory_budget=2**31,
        accumulated="/state",
        bases=("/new", "/kept"),
        submissions=2,
        task_vector_norm_sum=0.3,
        accumulated_norm=0.2,
        snapshot_folder="/snapshot",
        publish=("adapter",),
        adapter_rank=0,
    ),
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
