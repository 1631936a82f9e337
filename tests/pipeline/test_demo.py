"""The demo and the assessment of finished runs, on a world of a few seconds."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.formats import read_dataset
from firstlight.data.simulate import SimulationConfig
from firstlight.pipeline.assess import assess, run_result
from firstlight.pipeline.demo import RUNS, run_demo
from firstlight.reports.runs import (
    group_recall,
    picture_covers,
    picture_runs,
    training_curve,
    user_temperatures,
)
from firstlight.training.run_folder import load_run

SMALL = SimulationConfig(n_users=120, n_items=80, mean_clicks=16.0, cover_size=16)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    messages = []
    report = run_demo(
        tmp_path_factory.mktemp("demo") / "out",
        world=SMALL,
        emit=lambda name, **values: messages.append(values["text"]) if name == "message" else None,
    )
    return report, messages


def test_the_demo_leaves_what_it_says(demo):
    report, messages = demo
    assert [row["label"] for row in report.rows] == list(RUNS)
    assert [text[:5] for text in messages if text.startswith("[")] == [f"[{n}/6]" for n in range(1, 7)]
    lists = pl.read_csv(report.recommendations)
    assert lists.group_by("user").len()["len"].to_list() == [10] * 120
    assert read_dataset(report.data).parts.keys() == {"train", "valid", "test"}
    kept = json.loads((report.out / "demo.json").read_text())
    assert kept["rows"] == report.rows
    assert (report.out / "world" / "truth.json").exists()


def test_trained_models_learn_something_even_here(demo):
    report, _ = demo
    # Twenty of at most 80 items at random: a fourth, and a little more for users with many seen items.
    assert min(row["recall@20"] for row in report.rows[1:]) > 0.4


def test_the_demo_is_made_anew_over_an_old_one_but_over_nothing_else(demo, tmp_path):
    report, _ = demo
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        run_demo(tmp_path, world=SMALL)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    (report.out / "notes.txt").write_text("kept")
    again = run_demo(report.out, world=SMALL)
    names = ("label", "epochs", "recall@20", "ndcg@20")
    assert [[row[n] for n in names] for row in again.rows] == [[row[n] for n in names] for row in report.rows]
    assert (report.out / "notes.txt").read_text() == "kept"


def test_pictures_show_the_numbers_of_the_runs(demo, tmp_path):
    report, _ = demo
    runs = {label: load_run(path) for label, path in report.runs.items()}
    assert training_curve("p", runs["popularity"], "recall@20") is None
    run = runs["MF + Adap-τ"]
    curve = training_curve("MF", run, "recall@20")
    assert max(curve.values) == run.result["found"]["best_valid"]
    assert curve.epochs[int(np.argmax(curve.values))] == run.result["found"]["epochs"]
    assert len(group_recall(run, "recall@20")) == 10
    taus = user_temperatures("MF", run)
    last = run.metrics[-1]
    assert taus.per_user.min() == pytest.approx(last["tau_min"], rel=1e-4)
    assert user_temperatures("p", runs["popularity"]) is None
    pytest.importorskip("matplotlib")
    picture_runs(tmp_path / "overview.png", runs)
    picture_covers(tmp_path / "covers.png", run, read_dataset(report.data))
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("overview.png", "covers.png"))


def test_pictures_of_what_is_not_there(demo, tmp_path):
    report, _ = demo
    run = load_run(report.runs["MF + Adap-τ"])
    with pytest.raises(InputError, match="recall@7"):
        picture_runs(tmp_path / "a.png", {"MF": run}, metric="recall@7")
    with pytest.raises(InputError, match="enough training pairs"):
        picture_covers(tmp_path / "a.png", run, read_dataset(report.data), watched=80)


def test_targets_on_warm_and_cold_items_add_up(demo):
    report, _ = demo
    run = load_run(report.runs["MF + Adap-τ"])
    whole = assess(run)
    assert whole.evaluation.metrics == pytest.approx(run.result["metrics"])
    warm = assess(run, targets="warm")
    cold_items = (run.seen.item_degrees == 0)[run.parts["test"].items]
    assert warm.n_pairs == whole.n_pairs - int(cold_items.sum())


def test_seeds_share_a_configuration_and_other_fields_do_not(demo):
    report, _ = demo
    run = load_run(report.runs["MF + Adap-τ"])
    result = run_result(run)
    reseeded = run.config.model_copy(update={"seed": 9})
    threads = run.config.model_copy(
        update={"training": run.config.training.model_copy(update={"threads": 2})}
    )
    other = run.config.model_copy(update={"model": run.config.model.model_copy(update={"dim": 3})})
    from dataclasses import replace

    hashes = [run_result(replace(run, config=config)).config_hash for config in (reseeded, threads, other)]
    assert hashes[0] == hashes[1] == result.config_hash
    assert hashes[2] != result.config_hash
