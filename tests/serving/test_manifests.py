"""What is read from manifests: of this release, of earlier ones, and of variants."""

import json
from pathlib import Path
from typing import Any

import pytest
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.serving.manifests import AdapterFigures, ManifestFigures, Manifests, TensorFigures
from foldind.state.folder import StateFolder
from foldind.state.snapshots import MANIFEST

PLAN = Plan(
    (
        PlannedTensor("a.weight", "F32", (30, 20), Treatment.PROJECTED),
        PlannedTensor("a.bias", "F32", (30,), Treatment.SUMMED),
    )
)
PROJECTED = {"treatment": "projected", "task_vector_norm": 2.0, "kept": 0.5, "split_rank": 3}
SUMMED = {"treatment": "summed", "task_vector_norm": 1.0, "kept": 1.0, "split_rank": 0, "rank": 0}


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (
            {
                "dropped": 0.25,
                "adapter": {"rank": 8, "retained": [0.5, 0.75]},
                "tensors": {"a.weight": PROJECTED | {"rank": 7}, "a.bias": SUMMED},
            },
            ManifestFigures(0.25, AdapterFigures(8, 0.75), (TensorFigures("a.weight", 2.0, 0.5, 3, 7),)),
        ),
        (
            {"dropped": 0.0, "tensors": {"a.weight": PROJECTED | {"rank": 0}}},
            ManifestFigures(0.0, None, (TensorFigures("a.weight", 2.0, 0.5, 3, 20),)),
        ),
        (
            {"tensors": {"a.weight": PROJECTED}},
            ManifestFigures(0.0, None, (TensorFigures("a.weight", 2.0, 0.5, 3, 20),)),
        ),
        ({"variant": True}, ManifestFigures(0.0, None, ())),
    ],
    ids=["factored", "dense", "of an earlier release", "variant"],
)
def test_figures(manifest: dict[str, Any], expected: ManifestFigures, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.snapshot(1).mkdir(parents=True)
    (folder.snapshot(1) / MANIFEST).write_text(json.dumps(manifest))
    manifests = Manifests(folder, PLAN)
    assert manifests.of(1) == expected
    (folder.snapshot(1) / MANIFEST).unlink()
    assert manifests.of(1) == expected, "it was remembered"
    assert manifests.kept_share(1) is None, "it was not asked for before"
    with pytest.raises(FileNotFoundError):
        manifests.of(2)
