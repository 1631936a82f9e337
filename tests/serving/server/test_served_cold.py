"""Cold items that come in through the door are recommended as the evaluation says (benchmarks/served_cold.py)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from firstlight.data.formats import read_dataset
from firstlight.training.run_folder import load_run

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
NAMES = ("served_cold", "serve_load", "cold_start", "cold_grids", "machine")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not beside the tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("served_cold")
    for name in NAMES:
        sys.modules.pop(name, None)


def agree(found: list[Any], uploads: int) -> None:
    """Recall of every kind of target is that of the evaluation; only equal scores may change places."""
    assert [one.what for one in found] == ["as the table", "after a kill -9", "as `evaluate`"]
    for one in found:
        assert one.served == pytest.approx(one.offline, abs=1e-6), one
        assert one.apart < 1e-5
        assert one.moved <= 4
    assert found[0].served == found[1].served
    assert found[0].served["cold"] > 0.05
    assert uploads >= 5


def test_uploaded_items_reach_the_recall_of_the_evaluation(bench, trained, tmp_path):
    from firstlight.cli.app import run

    data, made = trained["run"].parent / "data", tmp_path / "run"
    words = ["--set", "model.dim=8", "--set", "training.batch_size=256", "--set", "training.refit=false"]
    words = [
        "train",
        str(data),
        "--model",
        "vbpr",
        "--epochs",
        "3",
        "--threads",
        "1",
        *words,
        "--out",
        str(made),
    ]
    assert run(words) == 0
    found, took = bench.through_the_door(load_run(made), read_dataset(data), tmp_path)
    agree(found, len(took.listed))
    assert all(0 < answered <= listed for answered, listed in zip(took.answered, took.listed, strict=True))


def test_a_wrong_list_is_seen(bench, trained):
    """The comparison itself: lists that miss one place, or the offset of cold items, are not the same."""
    run, dataset = load_run(trained["run"]), read_dataset(trained["run"].parent / "data")
    pool = bench.tabled_pool(dataset)
    offline = bench.tabled(run, dataset, pool)
    lists = bench.offline_lists(run, bench.known(run), pool)
    right = bench.compare("right", offline, lists, run, dataset, pool)
    assert right.same
    assert (right.moved, right.apart) == (0, 0.0)
    lists.ids[:, :10] = lists.ids[:, 10:]
    wrong = bench.compare("wrong", offline, lists, run, dataset, pool)
    assert not wrong.same
    assert wrong.moved == 10 * dataset.n_users


@pytest.mark.slow
def test_films_reach_the_recall_of_the_evaluation(
    bench, real_data: Callable[[str], Path], tmp_path, monkeypatch
):
    """1,258 real films with posters and texts, a two-tower model of one epoch."""
    folder = real_data("movielens-small")
    monkeypatch.setattr(bench.cold_start, "DATA", folder.parent)
    monkeypatch.setattr(bench.cold_start, "COMMON", [*bench.cold_start.COMMON, "training.epochs=1"])
    run, dataset = bench.train("tower", "movielens-small", 0, 1, tmp_path / "run")
    found, took = bench.through_the_door(run, dataset, tmp_path)
    agree(found, len(took.listed))
    assert len(took.listed) == 1258
