"""The geometry of heat maps."""

import math
from itertools import pairwise

import pytest
from foldind.serving.manifests import TensorFigures
from foldind.serving.pages.heatmap import STEPS, Place, heat_map, place


def figures(name: str, norm: float = 1.0, kept: float = 0.5, split_rank: int = 2, rank: int = 8) -> TensorFigures:
    return TensorFigures(name, norm, kept, split_rank, rank)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("encoder.layer.11.attention.self.query.weight", Place("encoder.layer", 11, "attention.self.query")),
        ("model.layers.3.mlp.experts.17.w1.weight", Place("model.layers", 3, "mlp.experts.*.w1")),
        ("h.0.attn.c_attn", Place("h", 0, "attn.c_attn")),
        ("0.weight", Place("", 0, "weight")),
        ("lm_head.weight", Place("", None, "lm_head")),
        ("layers.1²3.weight", Place("", None, "layers.1²3")),
        ("", Place("", None, "")),
    ],
)
def test_places(name: str, found: Place) -> None:
    assert place(name) == found


def test_layers_are_rows_in_order() -> None:
    found = heat_map(figures(f"layer.{layer}.{kind}.weight") for layer in (10, 9, 0) for kind in ("query", "value"))
    for figure in found.figures:
        (grid,) = figure.grids
        assert [label.text for label in grid.rows] == ["0", "9", "10"]
        assert [label.text for label in grid.columns] == ["query", "value"]
        assert len({(square.x, square.y) for square in grid.squares}) == 6
        assert all(square.x < grid.width and square.y + grid.cell_height <= grid.height for square in grid.squares)


def test_every_stack_has_a_grid_and_the_rest_a_list() -> None:
    names = ["vision.layers.0.q.weight", "text.layers.0.q.weight", "text.layers.1.q.weight", "projection.weight"]
    found = heat_map(map(figures, names))
    assert [grid.stack for grid in found.figures[0].grids] == ["vision.layers", "text.layers"]
    assert [cell.place.kind for cell in found.outside] == ["projection"]


def test_experts_share_a_cell() -> None:
    found = heat_map(figures(f"l.0.experts.{number}.w.weight", norm=3.0, kept=number / 2) for number in range(2))
    (cell,) = found.cells
    assert cell.norm == pytest.approx(math.hypot(3, 3))
    assert cell.kept == pytest.approx(0.5 * 3 / math.hypot(3, 3))
    assert "2 tensors" in found.figures[0].grids[0].squares[0].title


def test_what_collides_stands_out() -> None:
    kept, ranks, norms = heat_map(
        [
            figures("l.0.q.weight", kept=1.0, split_rank=0, norm=1.0),
            figures("l.1.q.weight", kept=0.2, split_rank=8, norm=4.0),
            figures("l.2.q.weight", kept=1.0, split_rank=0, norm=0.0),
        ]
    ).figures
    assert [square.step for square in kept.grids[0].squares] == [0, STEPS - 1, None]
    assert [square.step for square in ranks.grids[0].squares] == [0, STEPS - 1, 0]
    assert [square.step for square in norms.grids[0].squares] == [2, STEPS - 1, 0]
    assert kept.ends == ("100.0 %", "20.0 %")
    assert "unchanged" in kept.grids[0].squares[2].title
    assert "8 of 8" in ranks.grids[0].squares[1].title


def test_little_differences_look_little() -> None:
    kept = heat_map([figures("l.0.q.weight", kept=1.0), figures("l.1.q.weight", kept=0.995)]).figures[0]
    assert [square.step for square in kept.grids[0].squares] == [0, 0]


@pytest.mark.parametrize("layers", [1, 24, 126, 500])
def test_labels_do_not_overlap(layers: int) -> None:
    grid = heat_map(figures(f"l.{layer}.{'very.' * 9}long.weight") for layer in range(layers)).figures[0].grids[0]
    rows = [label.y for label in grid.rows]
    assert all(later - earlier >= 12 for earlier, later in pairwise(rows))
    assert grid.height < 2800
    assert len(grid.columns[0].text) < 30


def test_none() -> None:
    found = heat_map([])
    assert (found.figures, found.cells, found.outside) == ((), (), ())
