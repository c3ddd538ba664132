"""What the ledger keeps of submissions' sketches, and what it makes of them."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from foldind.state.database import FORMAT, Database
from foldind.state.durable import FileDigest
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.sketches import Sketches, cosine, likeness, record

from tests.state.test_database import make_format_4


def test_cosines_are_those_of_float64(seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((5, 1000)).astype("f4")
    found = likeness([tuple(vector.tolist()) for vector in vectors])
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    np.testing.assert_allclose(found.cosines, vectors.astype(float) @ vectors.T / np.outer(lengths, lengths), atol=1e-7)
    assert found.standard_error == 1000**-0.5
    assert likeness([]).cosines == []


@pytest.mark.parametrize("other", [(0.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_what_is_zero_or_not_finite_is_like_nothing(other: tuple[float, ...]) -> None:
    assert cosine((1.0, -2.0), (-2.0, 4.0)) == pytest.approx(-1)
    assert math.isnan(cosine((1.0, 2.0), other))
    assert cosine((3e38, 1e38), (3e38, 1e38)) == pytest.approx(1)


def test_a_ledger_of_format_4_gets_a_place_for_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    columns = "SELECT name, type, \"notnull\", pk FROM pragma_table_info('sketches')"
    with Database(path, create=True) as database, database.transaction() as connection:
        expected = connection.execute(columns).fetchall()
        make_format_4(connection)
    for _ in range(2):  # the second time there is nothing to do
        with Database(path) as database:
            assert database.query("PRAGMA user_version")[0][0] == FORMAT == 5
            assert database.query(columns) == expected
    with Database(path) as database:
        submission = Ledger(database).create(NewSubmission({"model.safetensors": FileDigest(10, "0" * 64)})).id
        assert Sketches(database).of([submission]) == {}
        with database.transaction() as connection:
            record(connection, submission, struct.pack("<2f", 0.5, -3))
        assert Sketches(database).of([submission]) == {submission: (0.5, -3)}
