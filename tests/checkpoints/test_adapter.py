"""Adapters that cannot be folded, each refused with its sentence, and in no time."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG, open_checkpoint
from foldind.checkpoints.match import check_against_plan
from foldind.checkpoints.plan import Plan, make_plan
from foldind.errors import CheckpointRefused
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import base_tensors

QUERY = "encoder.layer.0.attention.query"
MODULE = f"base_model.model.{QUERY}"
EMBEDDING = "embeddings.word_embeddings.weight"
RANK = 4
WIDTH = base_tensors()[f"{QUERY}.weight"].shape[0]
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8}
SLOWEST = 5


def factors(**changed: Tensor | None) -> dict[str, Tensor]:
    tensors = {"lora_A.weight": torch.ones(RANK, WIDTH), "lora_B.weight": torch.ones(WIDTH, RANK)}
    tensors |= {name.replace("__", "."): tensor for name, tensor in changed.items()}
    return {f"{MODULE}.{name}": tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("base")
    save_file(base_tensors() | {"lm_head.weight": base_tensors()[EMBEDDING].clone()}, folder / "model.safetensors")
    return make_plan(open_checkpoint(folder))


def write(folder: Path, config: object, tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / ADAPTER_CONFIG).write_bytes(text)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER)
    return folder


def check(plan: Plan, folder: Path, ignore: tuple[str, ...] = ()) -> None:
    check_against_plan(open_checkpoint(folder), plan, ignore=ignore, partial=False)


def refusal(plan: Plan, folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(CheckpointRefused) as refused:
        check(plan, folder)
    assert refused.value.hint
    assert str(refused.value).isprintable()
    assert time.monotonic() - began < SLOWEST
    return str(refused.value)


def test_what_can_be_folded(plan: Plan, tmp_path: Path) -> None:
    check(plan, write(tmp_path, CONFIG, factors()))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        *(
            ({"peft_type": kind}, "only LORA adapters")
            for kind in (None, "IA3", "LOHA", "VERA", "PREFIX_TUNING", 7, [])
        ),
        *(
            ({name: value}, f"the adapter has '{name}', which cannot be folded")
            for name, value in {
                "layer_replication": [[0, 2]],
                "target_parameters": ["experts.up"],
                "alora_invocation_tokens": [1],
                "trainable_token_indices": [5],
                "use_qalora": True,
                "arrow_config": {"top_k": 2},
                "megatron": "of a later release",
                "loftq_config": {"loftq_bits": 4},
            }.items()
        ),
        *(
            ({"init_lora_weights": start}, "which changes the base too")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", ["x"], {})
        ),
        ({"r": 5}, "have rank 4, and adapter_config.json says 5"),
        ({"r": None}, "says None"),
        ({"r": [4]}, "says [4]"),
        ({"r": "\x1b[2J"}, r"says '\x1b[2J'"),
        ({"r": "\ud800"}, r"says '\ud800'"),
        ({"r": "4"}, "says '4'"),
        *(
            ({"lora_alpha": alpha}, "the alpha")
            for alpha in (float("nan"), float("inf"), "8", None, True, [8], 10**400, -1e300)
        ),
        ({"rank_pattern": [1]}, "the rank_pattern of adapter_config.json is no map"),
        ({"alpha_pattern": "query"}, "the alpha_pattern of adapter_config.json is no map"),
        ({"rank_pattern": {"query": 9}}, "says 9"),
        ({"rank_pattern": {"(": 9}}, "which cannot be read"),
        ({"rank_pattern": {"(?<=a)b": 9}}, "which cannot be read"),
        ({"rank_pattern": {r"(a)\1": 9}}, "which cannot be read"),
        # What Python, and with it PEFT, takes for something else than our matcher, or for an error.
        *(
            ({name: {pattern: 9}}, "which cannot be read")
            for name in ("rank_pattern", "alpha_pattern")
            for pattern in ("[[:alpha:].0]*", "enc.{,60}query", "(?i)QUERY", r"\pL+", r"\Qquery\E", "\ud800")
        ),
        ({"alpha_pattern": {"((((x{900}){900}){900}){900}": 9}}, "which cannot be read"),
        ({"use_dora": True}, "use_dora and the magnitudes"),
    ],
    ids=str,
)
def test_settings(settings: dict[str, object], sentence: str, plan: Plan, tmp_path: Path) -> None:
    assert sentence in refusal(plan, write(tmp_path, CONFIG | settings, factors()))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*(.*)*(.*)*x", "(e|en|enc|.)*!" * 3])
def test_patterns_that_take_for_ever_elsewhere(pattern: str, plan: Plan, tmp_path: Path) -> None:
    began = time.monotonic()
    check(plan, write(tmp_path, CONFIG | {"rank_pattern": {pattern: 9}}, factors()))
    assert time.monotonic() - began < SLOWEST


@pytest.mark.parametrize(
    "patterns", [{f"a.{number}.*b": 1 for number in range(65)}, {f"a.{number}": 1 for number in range(5000)}]
)
def test_a_configuration_full_of_patterns(patterns: dict[str, int], plan: Plan, tmp_path: Path) -> None:
    assert f"has {len(patterns)} patterns" in refusal(
        plan, write(tmp_path, CONFIG | {"rank_pattern": patterns}, factors())
    )


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("query", True),
        ("attention.query", True),
        ("attention-query", False),
        ("attention_query", False),
        ("ttention.query", False),
        (QUERY, True),
        (f"x{QUERY}", False),
        ("layer.0.attention.query", True),
        ("layer.1.attention.query", False),
        (".query", False),
        ("0.attention.query", True),
        ("layer.[0-9]+.attention.(query|key)", True),
        ("[0-9]+.attention", False),
        (".*", True),
    ],
)
def test_patterns_match_as_in_peft(pattern: str, matches: bool, plan: Plan, tmp_path: Path) -> None:
    assert (get_pattern_key([pattern], QUERY) == pattern) == matches or pattern == QUERY
    folder = write(tmp_path, CONFIG | {"rank_pattern": {pattern: 9}}, factors())
    if matches:
        assert "says 9" in refusal(plan, folder)
    else:
        check(plan, folder)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (b"", "is not valid JSON"),
        (b'{"peft_type": "LO', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b'"LORA"', "is not a JSON object"),
        (b" " * 2**20 + b"{}", "is larger than"),
        (b'{"r": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_configurations_that_are_none(config: bytes, sentence: str, plan: Plan, tmp_path: Path) -> None:
    assert sentence in refusal(plan, write(tmp_path, config, factors()))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (factors(lora_B__weight=None), "without its lora_B.weight"),
        (factors(lora_A__weight=None), "without its lora_A.weight"),
        (factors(lora_A__weight=torch.ones(RANK, WIDTH + 1)), "has shape"),
        (factors(lora_B__weight=torch.ones(WIDTH + 1, RANK)), "has shape"),
        (factors(lora_B__weight=torch.ones(WIDTH, RANK + 1)), "only linear layers and embeddings"),
        (factors(lora_A__weight=torch.ones(RANK)), "only linear layers and embeddings"),
        (factors(lora_A__weight=torch.ones(RANK, WIDTH, 1, 1)), "only linear layers and embeddings"),
        (factors(lora_A__weight=torch.ones(())), "have rank 0"),
        (factors(lora_A__weight=torch.ones(0, WIDTH), lora_B__weight=torch.ones(WIDTH, 0)), "have rank 0"),
        (factors(lora_A__weight=torch.ones(RANK, WIDTH, dtype=torch.int8)), "has dtype I8"),
        (factors(lora_B__weight=torch.ones(WIDTH, RANK, dtype=torch.float64)), "has dtype F64"),
        (factors(lora_magnitude_vector=torch.ones(WIDTH)), "use_dora and the magnitudes"),
        (factors(base_layer__weight=torch.ones(WIDTH + 1, WIDTH)), "has shape"),
        (factors(base_layer__weight=torch.ones(WIDTH, WIDTH).to(torch.int8)), "has dtype I8"),
        (factors(lora_E=torch.ones(RANK)), "which cannot be folded"),
        ({f"{MODULE}.lora_B.bias": torch.ones(WIDTH)}, "without its lora_A.weight"),
        ({f"{MODULE}.lora_magnitude_vector": torch.ones(WIDTH)}, "belongs to no factors"),
        ({f"{MODULE}.weight": torch.ones(3, 3)}, "has shape"),
        ({"base_model.model.nothing.weight": torch.ones(3)}, "changes tensors that the base lacks: nothing.weight"),
        ({f"{QUERY}.lora_A.weight": torch.ones(RANK, WIDTH)}, "does not begin with 'base_model.model.'"),
        ({"base_model.model.embeddings.position_ids": torch.ones(1, 1)}, "cannot be merged"),
        ({}, "changes no tensor of the base"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors(tensors: dict[str, Tensor], sentence: str, plan: Plan, tmp_path: Path) -> None:
    assert sentence in refusal(plan, write(tmp_path, CONFIG, tensors))


def test_one_of_two_that_are_tied(plan: Plan, tmp_path: Path) -> None:
    rows, columns = base_tensors()[EMBEDDING].shape
    tensors = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(RANK, columns),
        "base_model.model.lm_head.lora_B.weight": torch.ones(rows, RANK),
    }
    assert "which is tied to another tensor" in refusal(plan, write(tmp_path, CONFIG, tensors))


@pytest.mark.parametrize("name", [EMBEDDING, "lm_head.weight"])
def test_one_of_two_that_are_tied_replaced(name: str, plan: Plan, tmp_path: Path) -> None:
    tensors = factors() | {f"base_model.model.{name}": base_tensors()[EMBEDDING] + 1}
    assert "which is tied to another tensor" in refusal(plan, write(tmp_path, CONFIG, tensors))


@pytest.mark.parametrize("second", [f"{QUERY}.weight", f"{QUERY}.modules_to_save.weight"])
def test_a_tensor_that_is_changed_twice(second: str, plan: Plan, tmp_path: Path) -> None:
    tensors = factors() | {f"base_model.model.{second}": torch.ones(WIDTH, WIDTH)}
    assert f"the adapter changes '{QUERY}.weight' twice" in refusal(plan, write(tmp_path, CONFIG, tensors))


def test_a_tensor_that_two_pairs_of_factors_change(plan: Plan, tmp_path: Path) -> None:
    other = factors(lora_embedding_A=torch.ones(RANK, WIDTH), lora_embedding_B=torch.ones(WIDTH, RANK))
    assert f"the adapter changes '{QUERY}.weight' twice" in refusal(plan, write(tmp_path, CONFIG, other))


def test_a_bias_of_the_factors_that_the_configuration_lacks(plan: Plan, tmp_path: Path) -> None:
    tensors = factors(lora_B__bias=torch.ones(WIDTH))
    check(plan, write(tmp_path, CONFIG | {"lora_bias": True}, tensors))
    assert "no lora_bias in adapter_config.json" in refusal(plan, write(tmp_path, CONFIG, tensors))
    too_long = factors(lora_B__bias=torch.ones(WIDTH + 1))
    assert "has shape" in refusal(plan, write(tmp_path, CONFIG | {"lora_bias": True}, too_long))


def test_magnitudes_of_another_length(plan: Plan, tmp_path: Path) -> None:
    tensors = factors(lora_magnitude_vector=torch.ones(WIDTH - 1))
    assert "magnitudes of shape" in refusal(plan, write(tmp_path, CONFIG | {"use_dora": True}, tensors))


def test_task_heads_are_ignored_where_the_operator_says_so(plan: Plan, tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, factors() | {"base_model.model.classifier.weight": torch.ones(2, 2)})
    assert "classifier.weight" in refusal(plan, folder)
    check(plan, folder, ignore=("classifier.*",))


def test_a_base_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="a base is a whole model"):
        make_plan(open_checkpoint(write(tmp_path, CONFIG, factors())))


def test_a_base_beside_an_adapter(tmp_path: Path) -> None:
    save_file(base_tensors(), write(tmp_path, CONFIG, factors()) / "model.safetensors")
    assert len(make_plan(open_checkpoint(tmp_path)).tensors) == len(base_tensors())
