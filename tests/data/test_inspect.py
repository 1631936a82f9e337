"""What inspection counts, and that it lists rather than stops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firstlight.core.errors import InputError
from firstlight.data.formats.base import EXAMPLES_PER_KIND
from firstlight.data.inspect import inspect_path


def test_known_counts(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 0 1 1\n1 1\n2\n")
    (tmp_path / "test.txt").write_text("0 1\n2 2 0\n")
    found = inspect_path(tmp_path)
    assert found.format == "lightgcn"
    assert (found.n_users, found.n_items) == (3, 3)
    assert found.parts == {"train": 3, "test": 3}
    assert found.density == pytest.approx(6 / 9)
    assert found.duplicates == 1
    assert found.pairs_in_train_and_later == 1
    assert (found.users_without_train, found.users_in_test_only) == (1, 1)
    assert (found.cold_items, found.items_in_test_only, found.test_pairs_of_cold_items) == (1, 1, 1)
    assert found.user_degrees == {
        "min": 0,
        "p25": 0.5,
        "median": 1,
        "p75": 1.5,
        "p90": 1.8,
        "p99": 1.98,
        "max": 2,
    }
    assert found.time_range is None
    assert found.problems == ()


def test_all_bad_rows_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    rows = ["a,x,1,3", "b,y,soon,4", ",z,3,4", *[f"c{n},z,9,many" for n in range(30)], "a,y,7,1"]
    path = tmp_path / "log.csv"
    path.write_text("user,item,time,rating\n" + "\n".join(rows) + "\n")
    found = inspect_path(path)
    assert found.parts == {"train": 2}
    assert found.problem_totals == {
        "timestamp is not a number": 1,
        "missing user id": 1,
        "value is not a number": 30,
    }
    assert found.dropped == found.problem_totals
    assert (found.time_range, found.value_range) == ((1, 7), (1.0, 3.0))
    values = [problem for problem in found.problems if problem.kind == "value is not a number"]
    assert len(values) == EXAMPLES_PER_KIND
    assert (values[0].line, values[0].file) == (5, str(path))
    assert json.loads(json.dumps(found.to_dict()))["problems"][0]["line"] == 3


def test_features_and_their_faults(tmp_path: Path) -> None:
    (tmp_path / "toy.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n0\t3\t2\n")
    features = np.ones((4, 2))
    features[1] = np.nan
    features[2] = 0
    np.save(tmp_path / "image_feat.npy", features)
    np.save(tmp_path / "text_feat.npy", np.ones((7, 2)))
    found = inspect_path(tmp_path)
    assert [report.name for report in found.features] == ["image"]
    report = found.features[0]
    assert (report.shape, report.present, report.not_finite_rows, report.zero_rows) == ((4, 2), 2, 1, 1)
    assert found.problem_totals["unusable file"] == 1
    assert any("7 rows, but image_feat.npy has 4" in problem.problem for problem in found.problems)


def test_covers_and_texts(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user,item\nu,a\n")
    (tmp_path / "items.csv").write_text("item,title,plot,cover\na,A,N/A,a.jpg\nb,B,Once,\n")
    found = inspect_path(tmp_path)
    assert found.texts == {"title": 2, "plot": 1}
    assert found.covers == 1
    assert found.problem_totals == {"missing cover file": 1}


def test_titles_in_an_old_encoding_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::1::5::978300760\n")
    (tmp_path / "movies.dat").write_bytes("1::Amélie::Comedy\n2::Plain::Drama\n".encode("latin-1"))
    found = inspect_path(tmp_path)
    assert found.problem_totals == {"not UTF-8": 1}
    assert found.problems[0].line == 1


def test_nothing_but_bad_rows_is_still_a_list(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n,x\ny,\n")
    found = inspect_path(tmp_path)
    assert (found.n_users, found.n_items, found.density) == (0, 0, 0.0)
    assert found.problem_totals == {"missing user id": 1, "missing item id": 1, "unusable file": 1}


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"log\.parquet"):
        inspect_path(tmp_path)
