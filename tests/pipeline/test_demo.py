"""The demo and the assessment of finished runs, on a world of a few seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from firstlight.cli.app import app
from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.formats import read_dataset
from firstlight.data.simulate import SimulationConfig
from firstlight.pipeline.arrivals import COLUMNS, TRUTH
from firstlight.pipeline.demo import RUNS, run_demo
from firstlight.reports.arrivals import arrival_covers
from firstlight.reports.runs import (
    group_recall,
    picture_covers,
    picture_runs,
    training_curve,
    user_temperatures,
)
from firstlight.serving.bundle import Bundle
from firstlight.training.assess import assess, run_result
from firstlight.training.run_folder import load_run

SMALL = SimulationConfig(n_users=120, n_items=80, mean_clicks=16.0, cover_size=16, arriving_share=0.35)


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
    assert [text[:5] for text in messages if text.startswith("[")] == [f"[{n}/8]" for n in range(1, 9)]
    lists = pl.read_csv(report.recommendations)
    assert lists.group_by("user").len()["len"].to_list() == [10] * 120
    assert read_dataset(report.data).parts.keys() == {"train", "valid", "test"}
    kept = json.loads((report.out / "demo.json").read_text())
    assert kept["rows"] == report.rows
    assert kept["arrivals"]["rows"] == report.arrivals.rows
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


def test_what_was_there_and_what_arrived_are_the_world(demo):
    report, _ = demo
    world, before, new = (read_dataset(path) for path in (report.world, report.before, report.new_items))
    assert sorted([*before.item_ids, *new.item_ids]) == world.item_ids.to_list()
    assert set(new.catalogue.items["role"]) == {"cold-test"}
    assert (new.n_users, new.train.n_pairs) == (0, 0)
    late = set(new.item_ids)
    for name, part in before.parts.items():
        whole = world.parts[name]
        wanted = [
            (user, item, time)
            for user, item, time in zip(
                whole.users, world.item_ids.gather(whole.items), whole.times, strict=True
            )
            if item not in late
        ]
        ids = before.item_ids.gather(part.items)
        assert list(zip(part.users, ids, part.times, strict=True)) == wanted
    place = {item: row for row, item in enumerate(world.item_ids)}
    for row, item in enumerate(before.item_ids):
        assert before.catalogue.items["title"][row] == world.catalogue.items["title"][place[item]]
    rows = [place[item] for item in new.item_ids]
    np.testing.assert_array_equal(
        new.catalogue.features["clip"].values, world.catalogue.features["clip"].values[rows]
    )


def test_new_items_are_added_and_recommended_by_their_raw_ids(demo):
    report, _ = demo
    run = load_run(report.cold_run)
    bundle = Bundle.open_run(run)
    new = read_dataset(report.new_items).item_ids
    assert report.adding["items"] == len(new) == 28
    assert bundle.item_ids()[len(run.item_ids) :].to_list() == new.to_list()
    lists = pl.read_csv(report.recommendations)
    share = lists["item"].is_in(new.implode()).mean()
    assert share == pytest.approx(report.share_of_new)
    served = Bundle.open(report.bundle)
    assert served.item_ids().to_list() == bundle.item_ids().to_list()
    assert torch.equal(served.item_vectors(), bundle.item_vectors())
    assert served.item(new[0])["title"] == read_dataset(report.new_items).catalogue.items["title"][0]
    assert served.item(run.item_ids[0])["title"] == read_dataset(report.before).catalogue.items["title"][0]
    assert share > 0


def test_adding_in_the_demo_is_the_command(demo, tmp_path):
    report, _ = demo
    copied = tmp_path / "run"
    shutil.copytree(report.cold_run, copied, ignore=shutil.ignore_patterns("additions"))
    done = CliRunner().invoke(app, ["add-items", str(copied), str(report.new_items)])
    assert done.exit_code == 0, done.output
    ours, theirs = (Bundle.open_run(load_run(path)) for path in (report.cold_run, copied))
    assert ours.item_ids().to_list() == theirs.item_ids().to_list()
    assert torch.equal(ours.item_vectors(), theirs.item_vectors())


def test_new_items_are_measured_against_controls_and_the_truth(demo):
    report, _ = demo
    found = report.arrivals
    rows = {row["label"]: row for row in found.rows}
    assert list(rows) == ["MHCR", "content k-NN", "popularity", "random", TRUTH]
    world, new = read_dataset(report.world), set(read_dataset(report.new_items).item_ids)
    late = [item in new for item in world.item_ids.gather(world.test.items)]
    assert found.pairs == sum(late)
    assert found.users == len(set(world.test.users[late].tolist()))
    assert rows["popularity"]["new among all"] == 0  # others were clicked
    for column in COLUMNS:
        assert max(row[column] for row in found.rows) == rows[TRUTH][column]
    # 20 of 28 by chance, for every user alike.
    assert rows["random"]["new among new"] == pytest.approx(20 / 28, abs=0.08)
    assert rows["random"]["new among new"] < found.content_ceiling < rows[TRUTH]["new among new"]
    for label, of in found.intervals.items():
        assert all(low <= rows[label][column] <= high for column, (low, high) in of.items())


def test_covers_show_the_first_users_who_came_back_for_new_items(demo, tmp_path):
    report, _ = demo
    world, bundle = read_dataset(report.world), Bundle.open_run(load_run(report.cold_run))
    rows = arrival_covers(bundle, world, users=2, watched=4, shown=6, least=2)
    assert [(len(row.watched), len(row.recommended), len(row.hits)) for row in rows] == [(4, 6, 6)] * 2
    covers = dict(zip(world.catalogue.items["cover"], world.item_ids, strict=True))
    new = set(read_dataset(report.new_items).item_ids)
    row = rows[0]
    user = world.user_ids.to_list().index(row.label)
    assert all(covers[image] in new for image in row.recommended)
    assert not any(covers[image] in new for image in row.watched)
    later = set(world.item_ids.gather(world.test.row(user)))
    assert list(row.hits) == [covers[image] in later for image in row.recommended]
    with pytest.raises(InputError, match="no covers"):
        arrival_covers(bundle, replace(world, catalogue=Catalogue()))


def test_the_command_ends_with_the_ways_to_the_page_and_the_report(demo, capsys, monkeypatch):
    report, _ = demo
    pytest.importorskip("matplotlib")
    from firstlight.cli import system
    from firstlight.cli.output import show

    monkeypatch.setattr("firstlight.pipeline.demo.run_demo", lambda out, emit: report)
    show(system.demo(report.out), as_json=False)
    *_, page, last = capsys.readouterr().out.splitlines()
    assert page.endswith((report.out / "report.html").as_uri())
    assert last.endswith(f"serve {report.bundle}")
    assert (report.out / "report.html").read_text().startswith("<!doctype html>")


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
    hashes = [run_result(replace(run, config=config)).config_hash for config in (reseeded, threads, other)]
    assert hashes[0] == hashes[1] == result.config_hash
    assert hashes[2] != result.config_hash
