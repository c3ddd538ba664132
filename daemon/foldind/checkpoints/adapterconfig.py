"""The configuration of a PEFT LoRA adapter: what kind it is, and the scale of each module's factors.

Source: huggingface/peft, tuners/lora/config.py.
"""

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from foldind.checkpoints.checkpoint import ADAPTER_CONFIG
from foldind.errors import CheckpointIncomplete, CheckpointRefused

MERGE = "merge it into its base with merge_and_unload() and submit the full model"
SAVE = "save it anew with PEFT's save_pretrained(...)"
"""What to do with an adapter that is refused."""

PREFIX = "base_model.model."
"""What the names of an adapter's tensors begin with; the name of a module of the base follows."""

MAX_CONFIG_BYTES = 1024 * 1024

_LARGEST_ALPHA = 1e6
_MOST_PATTERNS = 4096
_MOST_EXPRESSIONS = 64
"""Each is held against every module."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")

_READ_OTHERWISE = re.compile(r"\{,|\[:|\\[pPCQEz]|\(\?[a-zA-Z]+\)")
"""What an expression can have that PEFT, with Python's own matcher, takes for something else or for an error."""

_UNDERSTOOD = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora"}
    | {"init_lora_weights", "bias", "lora_bias", "modules_to_save"}
)
_WITHOUT_EFFECT = frozenset(
    # Of training, or of which modules have factors, which the file itself tells.
    {"auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"}
    | {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "runtime_config"}
    | {"megatron_config", "megatron_core", "eva_config", "qalora_group_size", "ensure_weight_tying"}
)
_FROM_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is, so that the factors are the difference from it."""


def read_adapter_config(file: BinaryIO) -> dict[str, Any]:
    """Read an adapter_config.json that is open for reading.

    Raises:
      CheckpointIncomplete: it ends before it is complete.
      CheckpointRefused: it is malformed, or too large.
      OSError: it cannot be read.
    """
    text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise CheckpointRefused(f"{ADAPTER_CONFIG} is larger than {MAX_CONFIG_BYTES} bytes", SAVE)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        whole = text.rstrip().endswith(b"}") and b"\0" not in text
        kind = CheckpointRefused if whole else CheckpointIncomplete
        raise kind(f"{ADAPTER_CONFIG} is not valid JSON ({error})", SAVE) from error
    if not isinstance(config, dict):
        raise CheckpointRefused(f"{ADAPTER_CONFIG} is not a JSON object", SAVE)
    return config


def check_foldable(config: Mapping[str, Any]) -> None:
    """Check that an adapter is of a kind that can be folded, and correctly. Raises CheckpointRefused."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointRefused(f"its peft_type is {str(kind)[:80]!r}, and only LORA adapters can be folded", MERGE)
    for setting, value in config.items():
        if value and setting not in _UNDERSTOOD | _WITHOUT_EFFECT:
            raise CheckpointRefused(f"the adapter has {setting[:80]!r}, which cannot be folded", MERGE)
    start = config.get("init_lora_weights", True)
    if start not in _FROM_THE_BASE:
        raise CheckpointRefused(
            f"the adapter was initialised with {str(start)[:80]!r}, which changes the base too",
            "convert it to plain LORA with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what the product of a module's factors is multiplied by.

    Args:
      config: the configuration.
      module: name of the module in the base.
      rank: of its factors.

    Raises:
      CheckpointRefused: it states another rank, or no proper alpha.
    """
    stated = _matching(config, "rank_pattern", module, config.get("r"))
    if stated != rank or rank < 1:
        raise CheckpointRefused(
            f"the factors of {module!r} have rank {rank}, and {ADAPTER_CONFIG} says {reprlib.repr(stated)}",
            "its configuration is of another adapter; submit the folder as PEFT saved it",
        )
    alpha = _matching(config, "alpha_pattern", module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise CheckpointRefused(f"{ADAPTER_CONFIG} gives {module!r} the alpha {str(alpha)[:20]!r}", SAVE)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _matching(config: Mapping[str, Any], name: str, module: str, default: object) -> object:
    """Return what the first pattern that the module matches has for it."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise CheckpointRefused(f"the {name} of {ADAPTER_CONFIG} is no map", SAVE)
    expressions = sum(not _NAME.fullmatch(pattern) for pattern in patterns)
    if len(patterns) > _MOST_PATTERNS or expressions > _MOST_EXPRESSIONS:
        raise CheckpointRefused(
            f"the {name} of {ADAPTER_CONFIG} has {len(patterns)} patterns, {expressions} of them regular expressions",
            f"write at most {_MOST_PATTERNS}, and {_MOST_EXPRESSIONS} that are more than names",
        )
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), default)


def _matches(pattern: str, module: str) -> bool:
    if _NAME.fullmatch(pattern):  # a dot in it stands for any character
        start = len(module) - len(pattern)
        if start < 0 or (start and module[start - 1] != "."):
            return False
        return all(wanted in (".", found) for wanted, found in zip(pattern, module[start:], strict=True))
    unreadable = CheckpointRefused(
        f"{ADAPTER_CONFIG} has the pattern {pattern[:80]!r}, which cannot be read", "write simpler patterns"
    )
    if _READ_OTHERWISE.search(pattern):
        raise unreadable
    import re2  # a submitter's pattern, which Python's own matcher could be busy with for years

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.fullmatch(rf"(.*\.)?({pattern})", module, options) is not None
    except (re2.error, UnicodeEncodeError) as error:
        raise unreadable from error
