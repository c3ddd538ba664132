"""Every merge rule, streamed by the worker's fold on real files, against its batch definition."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.checkpoints.plan import Treatment
from foldind.config import MergeSettings, ServeSettings
from foldind.merging.catalog import ACCUMULATED, CATALOG, slots_of
from foldind.state.layout import FACTORED, RECORDS, SINGULAR_VALUES, slot_file
from foldind.state.room import merge_bytes, state_bytes
from foldind.state.tensorrecords import read_records
from safetensors.torch import load_file
from torch import Generator, Tensor

from tests.checkpoints.folding import EMBEDDING, PROJECTED, Stream
from tests.checkpoints.test_fold_factored import Adapters
from tests.merging import oracle, oracle_rules
from tests.merging.oracle_rules import Array
from tests.merging.rules import PLAIN
from tests.support.models import base_tensors

EXPERTS, HEAD = "block.experts.gate_proj", "lm_head.weight"
SHARDS = 3
MATRICES = (*PROJECTED, EXPERTS)
BATCH = tuple(rule for rule in PLAIN if rule not in {"opcm", "foldin", "dare"})
PUBLISHED = ("norm", "mean", "scale:0.7", "tensor_norm:1.0", "iso:0.8", "flat:2.0", "power:0.5", "foldin")


def make_base(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Linear layers, stacked experts, tied tables, a convolution, vectors, a number and a buffer."""
    tensors = base_tensors(dtype=dtype)
    experts = base_tensors(seed=1, dtype=dtype)[PROJECTED[1]].reshape(3, 16, 24).contiguous()
    return tensors | {EXPERTS: experts, HEAD: tensors[EMBEDDING].clone()}


def tuned(base: Mapping[str, Tensor], generator: Generator, count: int, scale: float = 0.05) -> list[dict[str, Tensor]]:
    """Submissions that are alike to a degree; one of them lacks a tensor, and an expert is left alone by all."""
    shared = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    found = []
    for number in range(count):
        submission = {
            name: tensor.float()
            + scale * (1 + number) * (shared[name] + torch.randn(tensor.shape, generator=generator))
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
        submission = {name: tensor.to(base[name].dtype) for name, tensor in submission.items()}
        submission[EXPERTS][2] = base[EXPERTS][2]
        if number == 1:
            del submission[PROJECTED[0]]
        else:
            submission[HEAD] = submission[EMBEDDING].clone()
        found.append(submission | ({HEAD: submission[EMBEDDING].clone()}))
    return found


def matrices_of(name: str, tensor: Array) -> list[Array]:
    return list(tensor) if name == EXPERTS else [tensor]


class Batch:
    """Everything that was handed in, in float64: what the merged update is by definition."""

    def __init__(self, base: Mapping[str, Tensor], submissions: list[dict[str, Tensor]]):
        self._names = [name for name, tensor in base.items() if tensor.is_floating_point() and name != HEAD]
        self._task_vectors = [
            {
                name: one[name].double().numpy() - base[name].double().numpy()
                if name in one
                else np.zeros(tuple(base[name].shape))
                for name in self._names
            }
            for one in submissions
        ]

    def length(self, name: str) -> float:
        """The norms of a tensor's task vectors, added up."""
        return sum(float(np.linalg.norm(one[name])) for one in self._task_vectors)

    def of_rule(self, rule: str) -> dict[str, Array]:
        """By the defaults of a rule."""
        return {name: self._stacked(name, lambda name, values: self._rule(rule, name, values)) for name in self._names}

    def of_sum(self, publication: str) -> dict[str, Array]:
        """Of the sum of task vectors."""
        name, *given = publication.split(":")
        numbers = [float(number) for number in given]
        count = len(self._task_vectors)
        lengths = [oracle.norm(one) for one in self._task_vectors]
        sums = {key: sum(one[key] for one in self._task_vectors) for key in self._names}
        if name == "norm":
            lambda_ = oracle.norm(sums) / (sum(lengths) / count)
            return {key: values / lambda_ for key, values in sums.items()}
        if name in {"mean", "scale"}:
            return {key: values * (1 / count if name == "mean" else numbers[0]) for key, values in sums.items()}

        def merged(key: str, values: list[Array]) -> Array:
            total: Array = sum(values[1:], values[0])
            if name == "foldin" and key == EMBEDDING:
                return total
            if name != "tensor_norm" and key not in MATRICES:
                return total / count
            if not total.any():
                return total
            length = oracle_rules.root_mean_square(values)
            if name == "tensor_norm":
                return oracle_rules.scaled_to(total, numbers[0] * length)
            if name == "iso":
                return oracle_rules.iso_c(total, numbers[0])
            if name == "flat":
                return oracle_rules.power(total, 0.0, numbers[0] * length)
            exponent = 1 / count if name == "foldin" else numbers[0]
            return oracle_rules.power(total, exponent, float(np.linalg.norm(total)))

        return {key: self._stacked(key, merged) for key in self._names}

    def _stacked(self, name: str, merged: object) -> Array:
        apart = [matrices_of(name, one[name]) for one in self._task_vectors]
        results = [merged(name, list(values)) for values in zip(*apart, strict=True)]  # type: ignore[operator]
        return np.stack(results) if name == EXPERTS else results[0]  # type: ignore[no-any-return]

    def _rule(self, rule: str, name: str, values: list[Array]) -> Array:
        changed = [one for one in values if one.any()]
        total: Array = sum(values[1:], values[0])
        if not changed:
            return total
        if rule in {"average", "iso", "regression"} and not (rule != "average" and name in MATRICES):
            return oracle_rules.average(values)
        return {
            "task_arithmetic": lambda: oracle_rules.task_arithmetic(values, 0.3),
            "ties": lambda: oracle_rules.ties(values, 0.2),
            "breadcrumbs": lambda: oracle_rules.breadcrumbs(values, 0.9, 0.01, 0.3),
            "magmax": lambda: oracle_rules.magmax(values, 0.5),
            "iso": lambda: oracle_rules.iso_c(total, 1.0),
            "regression": lambda: oracle_rules.regression(changed, 0.3),
            "model_stock": lambda: oracle_rules.model_stock(changed),
        }[rule]()


def update_of(stream: Stream, base: Mapping[str, Tensor]) -> dict[str, Array]:
    return {
        name: tensor.double().numpy() - base[name].double().numpy()
        for name, tensor in stream.merged.items()
        if tensor.is_floating_point()
    }


def assert_close(
    stream: Stream, base: Mapping[str, Tensor], summed: Batch, expected: Mapping[str, Array], bound: float
) -> None:
    """The merged model, and per tensor the merged update; of a base of float32 whose elements are about 0.1.

    What float32 rounds off is a part of the base and of the task vectors `summed`, also where these all but cancel.
    """
    found = update_of(stream, base)
    assert np.array_equal(found.pop(HEAD), found[EMBEDDING])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        rounding = 1e-7 * (float(np.linalg.norm(base[name].double().numpy())) + summed.length(name))
        difference = float(np.linalg.norm(found[name] - values))
        assert difference <= bound * float(np.linalg.norm(values)) + rounding, name
    whole = {name: found[name] - values for name, values in expected.items()}
    error = oracle.norm(whole) / oracle.norm(expected)
    print(f"MEASURED stream: {error:.1e}")
    assert error <= 2e-6


class TestDense:
    @pytest.mark.parametrize("rule", BATCH)
    def test_is_the_batch_definition(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        submissions = tuned(base, generator, 3)
        stream = Stream(tmp_path, base, SHARDS, rule=rule)
        for submission in submissions:
            result = stream.fold(submission)
        batch = Batch(base, submissions)
        assert_close(stream, base, batch, batch.of_rule(rule), 1e-6)
        length = oracle.norm({name: values for name, values in update_of(stream, base).items() if name != HEAD})
        assert result.lambda_ == pytest.approx(result.record.accumulated_norm / length, rel=1e-5)
        assert torch.equal(stream.merged[EXPERTS][2], base[EXPERTS][2])

    @pytest.mark.parametrize("publication", PUBLISHED)
    def test_publications(self, publication: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        submissions = tuned(base, generator, 3)
        stream = Stream(tmp_path, base, SHARDS, rule="average", publication=publication)
        for submission in submissions:
            stream.fold(submission)
        batch = Batch(base, submissions)
        assert_close(stream, base, batch, batch.of_sum(publication), 1e-6)

    def test_opcm_publishes_every_way(self, generator: Generator, tmp_path: Path) -> None:
        """One state, which is that of the oracle in test_fold_exact.py."""
        base = make_base()
        submissions = tuned(base, generator, 2)
        states = []
        for publication in PUBLISHED:
            stream = Stream(tmp_path / publication, base, SHARDS, publication=publication)
            for submission in submissions:
                stream.fold(submission)
            states.append(stream.accumulated)
            name = publication.partition(":")[0]
            update = update_of(stream, base)
            for key, values in states[-1].items():
                if name in {"iso", "flat", "power", "foldin"} and key in MATRICES:
                    for found, total in zip(
                        matrices_of(key, update[key]), matrices_of(key, values.numpy()), strict=True
                    ):
                        if not total.any():
                            assert not found.any()
                            continue
                        left, sigma, right = np.linalg.svd(total.astype(np.float64), full_matrices=False)
                        rotated = left.T @ found @ right.T
                        shaped = sigma ** {"iso": 0.0, "flat": 0.0, "power": 0.5, "foldin": 0.5}[name]
                        expected = np.diag(shaped) * np.linalg.norm(found) / np.linalg.norm(shaped)
                        assert np.linalg.norm(rotated - expected) <= 1e-5 * np.linalg.norm(found), key
        for state in states[1:]:
            assert all(torch.equal(state[key], values) for key, values in states[0].items())

    def test_dare_is_its_definition_with_what_it_drew(self, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        submissions = tuned(base, generator, 3)
        stream = Stream(tmp_path, base, SHARDS, rule="dare", density=0.5)
        before = {name: np.zeros(tuple(tensor.shape)) for name, tensor in base.items()}
        drawn = []
        for submission in submissions:
            stream.fold(submission)
            for name, state in stream.accumulated.items():
                added = state.double().numpy() - before[name]
                task_vector = (submission.get(name, base[name]) - base[name]).double().numpy()
                rounding = 1e-6 * (np.abs(state.numpy()).max() + 1e-9)
                kept = np.abs(added) > rounding  # of a smaller element it cannot be told
                assert np.abs(added - kept * task_vector / 0.5).max() <= rounding + 1e-6 * np.abs(task_vector).max(), (
                    name
                )
                if name == EMBEDDING:
                    drawn.append(kept)
                    assert 0.4 < kept.mean() < 0.6
                before[name] = state.double().numpy()
        assert not np.array_equal(drawn[0], drawn[1])
        expected = {name: 0.3 * values for name, values in before.items() if name in stream.accumulated}
        assert_close(stream, base, Batch(base, submissions), expected, 1e-6)

    @pytest.mark.parametrize("rule", BATCH)
    def test_a_base_of_bfloat16(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base(torch.bfloat16)
        submissions = tuned(base, generator, 2)
        stream = Stream(tmp_path, base, SHARDS, rule=rule)
        for submission in submissions:
            stream.fold(submission, shards=2)
        for name, values in Batch(base, submissions).of_rule(rule).items():
            exact = base[name].double().numpy() + values
            found = stream.merged[name]
            assert found.dtype == torch.bfloat16
            with np.errstate(divide="ignore"):
                exponent = np.maximum(np.floor(np.log2(np.abs(exact))), -126)
            slack = 1e-6 * float(np.abs(exact).max())
            wrong = np.abs(found.double().numpy() - exact) > 2.0 ** (exponent - 8) + slack
            # Of bfloat16 it happens that positive and negative parts cancel, and then the order of a sum elects.
            assert wrong.sum() <= (0.01 * wrong.size if rule == "ties" else 0), name


@pytest.mark.parametrize("rule", PLAIN)
class TestBytes:
    def test_one_block_at_a_time_or_several(
        self, rule: str, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = make_base()
        submissions = tuned(base, generator, 2)
        results = []
        for processors, budget in ((1, 2**30), (2, 2**30), (7, 0)):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=processors: set(range(count)))
            stream = Stream(tmp_path / f"{processors}-{budget}", base, SHARDS, memory_budget=budget, rule=rule)
            results.append([stream.fold(submission) for submission in submissions])
        assert all(result == results[0] for result in results)
        assert results[0][0].snapshot_files != results[0][1].snapshot_files

    def test_state_files_are_those_of_the_catalog(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        stream = Stream(tmp_path, base, SHARDS, rule=rule)
        sizes = []
        for submission in tuned(base, generator, 3):
            result = stream.fold(submission)
            slots = (ACCUMULATED, *CATALOG[rule].all_slots)
            assert set(result.state_files) == {slot_file(slot) for slot in slots} | {RECORDS}
            assert {path.name for path in stream.state_folder.iterdir()} == set(result.state_files)
            held = {slot: load_file(stream.state_folder / slot_file(slot)) for slot in slots}
            for tensor in stream.plan.folded:
                expected = slots_of(rule, tensor.shape, matrix=tensor.treatment is Treatment.PROJECTED)
                for slot in slots:
                    found = held[slot].get(tensor.name)
                    assert (None if found is None else tuple(found.shape)) == (
                        expected[slot].shape if slot in expected else None
                    )
            content = sum(values.nbytes for tensors in held.values() for values in tensors.values())
            sizes.append(content)
            assert content <= state_bytes(stream.plan, rule)
            written = result.snapshot_files.values()
            settings = merge_bytes(stream.plan, MergeSettings(rule=rule), ServeSettings())
            headers = 64 * 1024
            bases = sum(path.stat().st_size for path in stream.new_bases.iterdir())
            snapshot = sum(digest.size for digest in written)
            assert content + bases + snapshot <= settings + headers
        assert sizes == [state_bytes(stream.plan, rule)] * 3

    def test_records(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        submissions = tuned(base, generator, 3)
        stream = Stream(tmp_path, base, rule=rule)
        for submission in submissions:
            stream.fold(submission)
        records = read_records(stream.state_folder)
        assert records is not None
        assert records.keys() == {tensor.name for tensor in stream.plan.folded}
        for name, found in records.items():
            task_vectors = [
                matrices_of(name, (one.get(name, base[name]).double() - base[name].double()).numpy())
                for one in submissions
            ]
            assert len(found) == len(task_vectors[0])
            accumulated = matrices_of(name, stream.accumulated[name].double().numpy())
            for record, total, apart in zip(found, accumulated, zip(*task_vectors, strict=True), strict=True):
                lengths = [float(np.linalg.norm(values)) for values in apart]
                assert record.submissions == sum(length > 0 for length in lengths)
                assert record.task_vector_squared_sum == pytest.approx(sum(x**2 for x in lengths), rel=1e-6)
                assert record.accumulated_norm == pytest.approx(float(np.linalg.norm(total)), rel=1e-6)


@pytest.mark.parametrize("rule", PLAIN)
def test_adapters_are_folded_as_what_they_add_up_to(rule: str, generator: Generator, tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in make_base().items() if name not in {HEAD, EXPERTS}}
    adapters = Adapters(tmp_path / "adapters", base, generator)
    streams = {way: Stream(tmp_path / way, base, rule=rule) for way in ("adapters", "models")}
    for names in (PROJECTED[:2], PROJECTED[1:], PROJECTED):
        folder, model = adapters.write(*names)
        if rule == "dare":  # the same draws
            streams["models"].fold_folder(write_named(tmp_path / "models" / folder.name, model))
        else:
            streams["models"].fold(model)
        streams["adapters"].fold_folder(folder)
        found, expected = (update_of(streams[way], base) for way in ("adapters", "models"))
        for name, values in expected.items():
            length = float(np.linalg.norm(values))
            if rule == "iso" and name in PROJECTED:
                continue  # see test_a_flat_spectrum_of_adapters
            if rule in {"ties", "breadcrumbs"}:  # elements at the threshold may fall on either side
                bad = np.abs(found[name] - values) > 1e-4 * max(float(np.abs(values).max()), 1e-9)
                assert bad.mean() <= 2e-3, name
            else:
                assert np.linalg.norm(found[name] - values) <= 1e-5 * length + 1e-6, name


def write_named(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    from tests.checkpoints.folding import write

    return write(folder, tensors)


@pytest.mark.parametrize("publication", ["iso:1.0", "flat:2.0", "power:0.5"])
@pytest.mark.parametrize("rule", ["opcm", "average"])
def test_a_spectrum_of_adapters(rule: str, publication: str, generator: Generator, tmp_path: Path) -> None:
    """Of a sum of low rank, the singular values that are there are shaped, and those that are zero stay so."""
    base = {name: tensor for name, tensor in make_base().items() if name not in {HEAD, EXPERTS}}
    adapters = Adapters(tmp_path / "adapters", base, generator)
    stream = Stream(tmp_path / "stream", base, rule=rule, publication=publication)
    length = dict.fromkeys(PROJECTED, 0.0)
    for count in (1, 2):
        folder, model = adapters.write(*PROJECTED)
        stream.fold_folder(folder)
        update = update_of(stream, base)
        for name in PROJECTED:
            length[name] += float((model[name] - base[name]).double().square().sum())
            values = np.linalg.svd(update[name], compute_uv=False)
            assert (values[2 * count :] <= 1e-5 * values[0]).all()
            if publication != "power:0.5":
                np.testing.assert_allclose(values[: 2 * count], values[0], rtol=1e-4)
            if publication == "flat:2.0":
                assert np.linalg.norm(update[name]) == pytest.approx(2 * (length[name] / count) ** 0.5, rel=1e-4)
            if publication == "power:0.5":
                sigma = load_file(stream.state_folder / FACTORED)[name + SINGULAR_VALUES]
                assert np.linalg.norm(update[name]) == pytest.approx(float(sigma.norm()), rel=1e-4)


class TestStateFromBefore:
    """A state that an earlier Foldin made has no records of tensors."""

    @pytest.mark.parametrize("rule", ["opcm", "average"])
    def test_is_folded_into_and_published_by_norm(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = make_base()
        submissions = tuned(base, generator, 4)
        streams = {way: Stream(tmp_path / way, base, rule=rule, publication="norm") for way in ("old", "new")}
        for number, submission in enumerate(submissions):
            results = {way: stream.fold(submission) for way, stream in streams.items()}
            if number == 0:
                (streams["old"].merged_state / RECORDS).unlink()
            elif number:
                assert set(results["new"].state_files) - set(results["old"].state_files) == {RECORDS}
            without = {
                way: replace(result, state_files={name: d for name, d in result.state_files.items() if name != RECORDS})
                for way, result in results.items()
            }
            assert without["old"] == without["new"]
            assert read_records(streams["new"].merged_state) is not None
        assert read_records(streams["old"].merged_state) is None
