"""How much room a merge needs, by the numbers of a small plan. What merges write: checkpoints/test_fold_rules.py."""

import pytest
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.config import MergeSettings, ServeSettings
from foldind.state.room import merge_bytes, state_bytes

MATRIX, STACKED, OTHER = 4 * 30 * 20, 4 * 3 * 8 * 6, 4 * 10
SQUARES = 4 * 20 * 20 + 4 * 3 * 6 * 6
SUM = MATRIX + STACKED + OTHER
PLAN = Plan(
    (
        PlannedTensor("a.weight", "F32", (30, 20), Treatment.PROJECTED),
        PlannedTensor("experts.up", "F32", (3, 8, 6), Treatment.PROJECTED),
        PlannedTensor("a.bias", "F32", (10,), Treatment.SUMMED),
        PlannedTensor("tied.weight", "F32", (30, 20), Treatment.TIED, "a.weight"),
        PlannedTensor("steps", "I64", (5,), Treatment.FROZEN),
    )
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        *(
            (rule, SUM)
            for rule in ("opcm", "foldin", "average", "task_arithmetic", "dare", "breadcrumbs", "magmax", "iso")
        ),
        ("ties", 4 * SUM),
        ("model_stock", 2 * SUM),
        ("regression", SUM + MATRIX + STACKED + SQUARES),
    ],
)
def test_state(rule: str, expected: int) -> None:
    assert state_bytes(PLAN, rule) == expected


def test_merge_is_state_bases_and_what_is_published() -> None:
    published = PLAN.published_bytes(("model",), 0)
    bases = 4 * 20 * (30 + 20 + 3) + 4 * 3 * 6 * (8 + 6 + 3)
    settings = ServeSettings()
    assert merge_bytes(PLAN, MergeSettings(), settings) == SUM + published
    for publication in ("iso", "flat", "power", "foldin"):
        settings = ServeSettings(publication=publication)
        assert merge_bytes(PLAN, MergeSettings(), settings) == SUM + bases + published
    assert merge_bytes(PLAN, MergeSettings(rule="foldin"), ServeSettings()) == SUM + bases + published
