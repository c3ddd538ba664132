"""A stream of folds in folders of its own, without a daemon, and what its tests share."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.config import PublishedAs
from foldind.merging.record import Record
from foldind.state.layout import ACCUMULATED
from foldind.worker.fold import fold_submission
from foldind.worker.messages import FoldRequest, FoldResult, Job, Progress
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from tests.merging import oracle
from tests.support.models import load_model, shard

QUERY = "encoder.layer.0.attention.query.weight"
DENSE = ("encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight")
PROJECTED = (QUERY, *DENSE)
EMBEDDING = "embeddings.word_embeddings.weight"
FROZEN = "embeddings.position_ids"
DIGITS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


def fine_tuned(base: Mapping[str, Tensor], generator: Generator, scale: float = 0.02) -> dict[str, Tensor]:
    """Noise of the same dtype on every floating-point tensor."""
    return {
        name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.dtype in DIGITS
        else tensor.clone()
        for name, tensor in base.items()
    }


def as_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors that are folded, in float64."""
    return {name: tensor.double().numpy() for name, tensor in tensors.items() if tensor.dtype in DIGITS}


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]) -> float:
    difference = {name: found[name].double().numpy() - expected[name] for name in expected}
    return oracle.norm(difference) / oracle.norm(expected)


class Stream:
    """Folds submissions into a base one after the other, as the daemon has them folded; None: the one in root/base."""

    def __init__(
        self,
        root: Path,
        base: Mapping[str, Tensor] | None,
        shards: int = 1,
        backend: str = "torch",
        memory_budget: int = 2**30,
        max_rank: int = 0,
        publish: tuple[PublishedAs, ...] = ("model",),
        adapter_rank: int = 0,
        rule: str = "opcm",
        publication: str = "",
        **hyper_parameters: object,
    ):
        self._root = root
        self.backend = backend
        self._max_rank = max_rank
        self.bases = root / "bases"
        self.base = root / "base" if base is None else write(root / "base", base, shards)
        self.plan: Plan = make_plan(open_checkpoint(self.base))
        self._plan_file = root / "plan.json"
        self._plan_file.write_text(self.plan.to_json())
        self._job = Job(
            base=str(self.base),
            plan=str(self._plan_file),
            rule=rule,
            hyper_parameters=hyper_parameters,
            publication=publication,
            backend=backend,
            threads=1,
            memory_budget=memory_budget,
            publish=publish,
            adapter_rank=adapter_rank,
        )
        self._results: list[FoldResult] = []
        self.progress: list[Progress] = []
        self._attempts = 0

    def fold(
        self, submission: Mapping[str, Tensor], shards: int = 1, vocab: VocabPolicy = VocabPolicy.SAME
    ) -> FoldResult:
        """Fold one; a refused one leaves no trace but its folders."""
        return self.fold_folder(write(self._root / f"submission{self._attempts}", submission, shards), vocab)

    def take_out(self, submission: Mapping[str, Tensor]) -> FoldResult:
        """Take one out again."""
        return self.fold_folder(write(self._root / f"submission{self._attempts}", submission), take_out=True)

    def fold_folder(
        self, submission: Path, vocab: VocabPolicy = VocabPolicy.SAME, *, take_out: bool = False
    ) -> FoldResult:
        """As `fold` and `take_out`, of one that lies in a folder."""
        self._attempts += 1
        self.progress.clear()
        last = self._results[-1] if self._results else None
        for folder in (self.state_folder, self.snapshot_folder, self.new_bases):
            folder.mkdir(parents=True)
        result = fold_submission(
            FoldRequest(
                job=self._job,
                record=last.record if last else Record(0, 0.0, 0.0),
                max_rank=self._max_rank,
                submission=str(submission),
                vocab=vocab,
                seed=submission.name,
                take_out=take_out,
                accumulated=str(self.merged_state) if last else "",
                bases=str(self.bases),
                state_folder=str(self.state_folder),
                new_bases=str(self.new_bases),
                snapshot_folder=str(self.snapshot_folder),
            ),
            self.progress.append,
        )
        self.merged_state = self.state_folder
        self._results.append(result)
        return result

    def start_from(self, other: "Stream", accumulated: Mapping[str, Tensor]) -> None:
        """Stand where another stream does, with a state that is dense throughout."""
        self._results = list(other._results)
        self.merged_state = self._root / "start"
        self.merged_state.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in accumulated.items()}, self.merged_state / ACCUMULATED)

    @property
    def state_folder(self) -> Path:
        """Of the last attempt."""
        return self._root / "merge" / str(self._attempts)

    @property
    def new_bases(self) -> Path:
        """Bases of the state after the last attempt, if it was published by them."""
        return self._root / "new_bases" / str(self._attempts)

    @property
    def snapshot_folder(self) -> Path:
        """Of the last attempt."""
        return self._root / "snapshots" / str(self._attempts)

    @property
    def accumulated(self) -> dict[str, Tensor]:
        """The state after the last attempt."""
        return load_file(self.state_folder / ACCUMULATED)

    @property
    def merged(self) -> dict[str, Tensor]:
        """The snapshot of the last attempt."""
        return load_model(self.snapshot_folder)


def write(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """Write a checkpoint folder of one file or several."""
    if shards > 1:
        return shard(folder, {name: tensor.contiguous() for name, tensor in tensors.items()}, shards)
    folder.mkdir(parents=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    return folder


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
