"""The models that the mutated submissions are of, and the folders that a fold takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from foldind.checkpoints.checkpoint import Limits, open_checkpoint
from foldind.checkpoints.match import submission_limits
from foldind.checkpoints.plan import Plan, make_plan
from torch import Tensor

from tests.checkpoints.folding import write
from tests.support.models import base_tensors

EMBEDDING = "embeddings.word_embeddings.weight"
LM_HEAD = "lm_head.weight"
EXPERTS = "layer.experts.up"
QUERY = "encoder.layer.0.attention.query"
TALL = "encoder.layer.0.intermediate.dense"
WIDE = "encoder.layer.0.output.dense"
NORM = "encoder.layer.0.LayerNorm"
FROZEN = "embeddings.position_ids"
LARGE = "large.weight"

HEAD = "score.weight"
"""That no base has, and that is ignored."""
IGNORE = ("score.*",)

TIED = {EMBEDDING: (LM_HEAD,)}


def small(dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of every treatment; the output layer is the embedding."""
    tensors = base_tensors(dtype=dtype)
    experts = torch.randn((2, 8, 12), generator=torch.Generator().manual_seed(1)).mul(0.1).to(dtype)
    return tensors | {LM_HEAD: tensors[EMBEDDING].clone(), EXPERTS: experts}


def large() -> dict[str, Tensor]:
    """One tensor takes two blocks where it is coded."""
    values = torch.randn((1100, 1000), generator=torch.Generator().manual_seed(2)).bfloat16()
    return {LARGE: values, QUERY + ".weight": torch.zeros(24, 24)}


BASES = {
    "F32": lambda: small(torch.float32),
    "BF16": lambda: small(torch.bfloat16),
    "F16": lambda: small(torch.float16),
    "large": large,
}


@dataclass(frozen=True)
class Base:
    """One of them, on disk."""

    folder: Path
    tensors: Mapping[str, Tensor]
    plan: Plan
    limits: Limits
    plan_file: Path

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Its tensors, float64."""
        return {name: tensor.double().numpy() for name, tensor in self.tensors.items()}

    @cached_property
    def folded(self) -> list[str]:
        """The names that something can be merged into."""
        tied = {name for names in TIED.values() for name in names}
        return [name for name, tensor in self.tensors.items() if tensor.is_floating_point() and name not in tied]


def make(root: Path, name: str) -> Base:
    tensors = BASES[name]()
    folder = write(root / f"base-{name}", tensors)
    plan = make_plan(open_checkpoint(folder))
    plan_file = root / f"plan-{name}.json"
    plan_file.write_text(plan.to_json())
    return Base(folder, tensors, plan, submission_limits(plan), plan_file)
