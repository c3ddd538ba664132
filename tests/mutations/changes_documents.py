"""Changes of the JSON files beside the tensors: the index of the shards, the configuration of an adapter."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from foldind.checkpoints.checkpoint import ADAPTER_CONFIG, INDEX

from tests.mutations import oddities
from tests.mutations.originals import Files

PATTERNS = (
    "query",
    "attention.query",
    ".*",
    "dense",
    ".*dense",
    "dens.",
    "^enc.*query",
    "(query|dense)",
    "",
    "(",
    "q{2",
)
PATTERNS += (
    r"\d+",
    r".*\.\d\..*",
    "[[:alpha:].0]*",
    r"enc.{,60}query",
    "(?i)QUERY",
    "(?i:QUERY)",
    r"\Qquery\E",
    r"\pL+",
)
PATTERNS += (r"(?<=a)b", r"(a)\1", "(a+)+$", "((x{900}){900}){900}", "que*+ry", "query$", r"query\Z", "\ud800")

SETTINGS: dict[str, tuple[Any, ...]] = {
    "r": (4, 2, 16, 4.0, "4", 0, -4, True),
    "lora_alpha": (1, 8, 0.5, -3, 1e-30, 1e-50, 1e5, 999999.0, 1e6, 0, "8", True, 10**400),
    "use_rslora": (True, False, "no", 0, 1, None),
    "fan_in_fan_out": (True, False, "no", 0, 1, None),
    "use_dora": (True, False, 1, 0),
    "lora_bias": (True, False, 1, 0),
    "bias": ("none", "all", "lora_only", 3),
    "peft_type": ("LORA", "lora", "IA3", None, 4),
    "init_lora_weights": (True, False, "gaussian", "pissa", 1, {}, None),
    "modules_to_save": (None, [], ["query"], "all"),
    "layer_replication": ([[0, 2]], [], None),
    "megatron_config": ({"a": 1}, None),
    "of a later release": (1, "", None, {}),
}


def edit_setting(rng: Random, config: dict[str, Any]) -> None:
    setting = rng.choice([*SETTINGS, *list(SETTINGS)[:6]])
    config[setting] = rng.choice(SETTINGS[setting]) if rng.random() < 0.8 else oddities.value(rng)


def edit_pattern(rng: Random, config: dict[str, Any]) -> None:
    name, values = rng.choice(
        [("rank_pattern", (4, 2, 16, None, "4")), ("alpha_pattern", (1, 3.5, -1, 1e5, "8", 1e-40))]
    )
    patterns = config.get(name)
    patterns = dict(patterns) if isinstance(patterns, dict) and rng.random() < 0.7 else {}
    for _ in range(rng.choice([1, 1, 2, 100])):
        pattern = rng.choice(PATTERNS)
        number = rng.choice(values) if rng.random() < 0.9 else oddities.value(rng)
        # The first that matches counts.
        patterns = {pattern: number} | patterns if rng.random() < 0.5 else patterns | {pattern: number}
    config[name] = patterns


def edit_map(rng: Random, index: dict[str, Any]) -> None:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return
    tensor, shard = rng.choice(list(weight_map)), rng.choice(list(weight_map.values()))
    odd = [shard, "model.safetensors", "none.safetensors", "../a.safetensors", ".safetensors", oddities.value(rng)]
    weight_map[rng.choice([tensor, tensor, "a", tensor + "\x1b"])] = rng.choice(odd)
    if rng.random() < 0.3:
        del weight_map[tensor]


def edit_text(rng: Random, text: bytes) -> bytes:
    odd: list[Callable[[], bytes]] = [
        lambda: oddities.duplicate_key(rng, text),
        lambda: text.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-8-sig", "utf-32"])),
        lambda: text + rng.choice([b" ", b"\0", b"{}", b"\n"]),
        lambda: text[: rng.randrange(len(text) + 1)],
        lambda: rng.choice([b"", b"{}", b"[]", b"null", b"1", b'""', b"\0" * 100, b"[" * 100_000, b" " * 2_000_000]),
    ]
    return rng.choice(odd)()


CHANGES: dict[str, tuple[Callable[[Random, Any], None], ...]] = {
    ADAPTER_CONFIG: (edit_setting, edit_setting, edit_pattern, edit_pattern, oddities.spoil),
    INDEX: (edit_map, edit_map, oddities.spoil),
}


def change(rng: Random, files: Files) -> str:
    if (name := next((name for name in CHANGES if name in files), "")) == "":
        return "nothing"
    if rng.random() < 0.15:
        files[name] = edit_text(rng, files[name])
        return f"edit_text in {name}"
    try:
        document = json.loads(files[name])
    except (ValueError, RecursionError):
        return "nothing"
    if not isinstance(document, dict):
        return "nothing"
    how = rng.choice(CHANGES[name])
    how(rng, document)
    files[name] = oddities.dump(document, rng)
    return f"{how.__name__} in {name}"
