"""The demo, items that arrive, and the assessment of finished runs, on a world of a few seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from firstlight.cli.app import app, call
from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.cut import cut_dataset
from firstlight.data.formats import read_dataset
from firstlight.data.simulate import SimulationConfig, read_truth, simulate
from firstlight.pipeline.arrivals import COLUMNS, TRUTH, ArrivalReport, measure_arrivals
from firstlight.pipeline.demo import LABELS, run_demo
from firstlight.pipeline.served import add_items, export
from firstlight.reports.arrivals import arrival_covers, draw_found, panels_of, read_arrivals
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

#: A world of a few seconds, and an encoder that is too small to see anything.
SMALL = [
    "data.simulate={n_users: 120, n_items: 80, mean_clicks: 16.0, cover_size: 16, arriving_share: 0.35}",
    "encoder.pretrain={epochs: 1, threads: 1, set: {encoder.dim: 16, encoder.depth: 2, encoder.heads: 2, "
    "encoder.image_size: [16, 16], encoder.patch_size: 8, mae.decoder_dim: 16, mae.decoder_depth: 1, "
    "mae.decoder_heads: 2, training.batch_size: 16}}",
    "encoder.refine={epochs: 1, head_epochs: 1, threads: 1, set: {crops.n_local: 0, training.batch_size: 16}}",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("matplotlib")
    messages = []
    report = run_demo(
        tmp_path_factory.mktemp("demo") / "out",
        call,
        changes=SMALL,
        emit=lambda name, **values: messages.append(values["text"]) if name == "message" else None,
    )
    return report, messages


def test_the_demo_leaves_what_it_says(demo):
    report, messages = demo
    assert [row["label"] for row in report.rows] == list(LABELS.values())
    count = len(report.outcome.steps)
    assert [text.split("]")[0] for text in messages] == [f"[{n}/{count}" for n in range(1, count + 1)]
    assert all("to go" in text for text in messages)
    names = [step.name for step in report.outcome.steps]
    assert names[:4] == ["data", "cut", "pretrain", "refine"]
    assert names[-4:] == ["export", "arrivals", "recommend", "report"]
    lists = pl.read_csv(report.recommendations)
    assert lists.group_by("user").len()["len"].to_list() == [10] * 120
    kept = json.loads((report.out / "demo.json").read_text())
    assert kept["results"] == report.rows
    assert kept["new_items"]["rows"] == report.arrivals.rows
    assert (report.world / "truth.json").exists()
    text = report.page.read_text()
    assert text.startswith("<!doctype html>")
    assert f"{report.arrivals.items} items were added without a click" in text
    assert f"{report.arrivals.rows[0]['new among all']:.3f}" in text


def test_nothing_of_what_arrives_is_seen_before(demo):
    report, _ = demo
    new = set(read_dataset(report.new_items).item_ids)
    assert len(new) == 28
    for step in report.outcome.steps:
        words = step.commands[0]
        if words[0] in ("pretrain", "refine", "train"):
            assert words[1] == str(report.known)
    for run in report.runs.values():
        assert not new & set(load_run(run).item_ids)


def test_trained_models_learn_something_even_here(demo):
    report, _ = demo
    rows = {row["label"]: row["recall@20"] for row in report.rows}
    # Twenty of the 52 items that were there, at random, are 0.38, and a little more where many were clicked.
    assert min(rows.values()) > 0.42


def test_the_demo_goes_on_where_it_was_and_overwrites_nothing_of_others(demo, tmp_path):
    report, _ = demo
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="no pipeline made"):
        run_demo(tmp_path, call, changes=SMALL)
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"
    again = run_demo(report.out, _never, changes=SMALL)
    assert {result.state for result in again.outcome.results} == {"done"}
    assert again.rows == report.rows
    assert again.arrivals == report.arrivals
    assert again.adding == report.adding


def _never(words):
    raise AssertionError(words)


def test_what_was_there_and_what_arrived_are_the_world(demo):
    report, _ = demo
    world, before, new = (read_dataset(path) for path in (report.world, report.known, report.new_items))
    assert sorted([*before.item_ids, *new.item_ids]) == world.item_ids.to_list()
    assert set(new.catalogue.items["role"]) == {"cold-test"}
    assert (new.n_users, new.train.n_pairs) == (0, 0)
    _, truth = read_truth(report.world)
    assert set(new.item_ids) == {
        world.item_ids[int(row)] for row in np.flatnonzero(truth.arrived > truth.cut)
    }
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


def test_the_truth_comes_back_from_its_files(demo, tmp_path):
    report, _ = demo
    config, truth = read_truth(report.world)
    again = simulate(config).truth
    for name, value in vars(again).items():
        np.testing.assert_array_equal(getattr(truth, name), value)
    assert read_truth(report.known) is None
    shutil.copytree(report.world, tmp_path / "torn")
    (tmp_path / "torn" / "truth.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="truth of this world cannot be read"):
        read_truth(tmp_path / "torn")


def test_new_items_are_added_and_recommended_by_their_raw_ids(demo):
    report, _ = demo
    served, new = Bundle.open(report.bundle), read_dataset(report.new_items).item_ids
    run = load_run(report.runs["MHCR"])
    assert report.adding["items"] == len(new) == 28
    assert served.item_ids()[len(run.item_ids) :].to_list() == new.to_list()
    lists = pl.read_csv(report.recommendations)
    assert lists["item"].is_in(new.implode()).mean() > 0
    assert served.item(new[0])["title"] == read_dataset(report.new_items).catalogue.items["title"][0]
    assert served.item(run.item_ids[0])["title"] == read_dataset(report.known).catalogue.items["title"][0]


def test_adding_in_the_demo_is_the_command_on_the_run(demo, tmp_path):
    report, _ = demo
    copied = tmp_path / "run"
    shutil.copytree(report.runs["MHCR"], copied)
    done = CliRunner().invoke(app, ["add-items", str(copied), str(report.new_items)])
    assert done.exit_code == 0, done.output
    ours, theirs = Bundle.open(report.bundle), Bundle.open_run(load_run(copied))
    assert ours.item_ids().to_list() == theirs.item_ids().to_list()
    assert torch.equal(ours.item_vectors(), theirs.item_vectors())
    found = measure_arrivals(theirs, read_dataset(report.world), label="MHCR", folder=report.world)
    assert found.rows == report.arrivals.rows


def test_new_items_are_measured_against_controls_and_the_truth(demo):
    report, _ = demo
    found = report.arrivals
    rows = {row["label"]: row for row in found.rows}
    assert list(rows) == ["MHCR", "content k-NN", "popularity", "random", TRUTH]
    world, new = read_dataset(report.world), set(read_dataset(report.new_items).item_ids)
    late = [item in new for item in world.item_ids.gather(world.test.items)]
    assert found.pairs == sum(late)
    assert found.users == len(set(world.test.users[late].tolist()))
    assert (found.items, found.unknown_pairs) == (28, 0)
    assert rows["popularity"]["new among all"] == 0  # others were clicked
    for column in COLUMNS:
        assert max(row[column] for row in found.rows) == rows[TRUTH][column]
    # 20 of 28 by chance, for every user alike.
    assert rows["random"]["new among new"] == pytest.approx(20 / 28, abs=0.08)
    assert rows["random"]["new among new"] < found.content_ceiling < rows[TRUTH]["new among new"]
    for label, of in found.intervals.items():
        assert all(low <= rows[label][column] <= high for column, (low, high) in of.items())
    lists = call(["recommend", str(report.bundle), "-k", "20", "--out", str(report.out / "twenty.csv")])
    share = pl.read_csv(lists["out"])["item"].is_in(pl.Series(sorted(new)).implode()).mean()
    assert found.share_of_new == pytest.approx(share)


def test_arrivals_of_a_dataset_that_nobody_generated(demo, tmp_path):
    report, _ = demo
    call(["data", "split", str(report.world), str(tmp_path / "split"), "--by", "cold-items"])
    call(["data", "cut", str(tmp_path / "split"), str(tmp_path / "cut")])
    words = ["--model", "tower", "--epochs", "1", "--threads", "1", "--set", "model.dim=8"]
    call(["train", str(tmp_path / "cut" / "known"), "--out", str(tmp_path / "run"), *words])
    bundle = export(load_run(tmp_path / "run"), tmp_path / "bundle")
    with pytest.raises(InputError, match="no item was added"):
        measure_arrivals(bundle, read_dataset(tmp_path / "split"))
    add_items(bundle, tmp_path / "cut" / "new")
    bundle.add_items(["stranger"], bundle.item_vectors()[:1])
    found = call(["arrivals", str(tmp_path / "bundle"), str(tmp_path / "split"), "-k", "5"])
    assert [row["label"] for row in found["rows"]] == ["tower", "content k-NN", "popularity", "random"]
    assert found["content_ceiling"] is None
    assert found["items"] == read_dataset(tmp_path / "cut" / "new").n_items + 1
    (tmp_path / "found.json").write_text(json.dumps(found))
    panels = panels_of(read_arrivals(tmp_path / "found.json"))
    assert panels[0].values["tower"] == found["rows"][0]["new among new"]
    assert panels[0].line is None
    draw_found(tmp_path / "found.png", found)
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    again = ArrivalReport.from_dict(found)
    assert again.to_dict()["rows"] == found["rows"]
    assert "5" in again.heading


def test_what_cannot_be_cut_or_read(demo, tmp_path):
    report, _ = demo
    world = read_dataset(report.world)
    with pytest.raises(InputError, match="no item of this dataset is new"):
        cut_dataset(read_dataset(report.known))
    with pytest.raises(InputError, match="no item of this dataset is new"):
        cut_dataset(replace(world, catalogue=Catalogue()))
    roles = world.catalogue.items.with_columns(role=pl.lit("cold-test"))
    with pytest.raises(InputError, match="every item is new"):
        cut_dataset(replace(world, catalogue=Catalogue(roles)))
    with pytest.raises(InputError, match="no test part"):
        measure_arrivals(Bundle.open(report.bundle), replace(world, test=None))
    (tmp_path / "other.json").write_text('{"rows": [{"label": "x"}]}')
    for path in (tmp_path / "other.json", tmp_path / "none.json", report.world / "items.parquet"):
        with pytest.raises(InputError, match="no numbers of added items"):
            read_arrivals(path)
    with pytest.raises(InputError, match="no numbers of added items"):
        ArrivalReport.from_dict({"rows": []})


def test_covers_show_the_first_users_who_came_back_for_new_items(demo):
    report, _ = demo
    world, bundle = read_dataset(report.world), Bundle.open(report.bundle)
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
    from firstlight.cli import system
    from firstlight.cli.output import show

    monkeypatch.setattr("firstlight.pipeline.demo.run_demo", lambda *_, **__: report)
    show(system.demo(report.out), as_json=False)
    *_, page, last = capsys.readouterr().out.splitlines()
    assert page.endswith((report.out / "report.html").as_uri())
    assert last.endswith(f"serve {report.bundle}")
    for name in ("overview", "covers", "new-items"):
        assert (report.out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


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
    picture_runs(tmp_path / "overview.png", runs)
    picture_covers(tmp_path / "covers.png", run, read_dataset(report.known))
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("overview.png", "covers.png"))


def test_pictures_of_what_is_not_there(demo, tmp_path):
    report, _ = demo
    run = load_run(report.runs["MF + Adap-τ"])
    with pytest.raises(InputError, match="recall@7"):
        picture_runs(tmp_path / "a.png", {"MF": run}, metric="recall@7")
    with pytest.raises(InputError, match="enough training pairs"):
        picture_covers(tmp_path / "a.png", run, read_dataset(report.known), watched=80)


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


def test_the_world_of_the_demo_is_as_large_as_it_says():
    from firstlight.pipeline.config import read_pipeline

    config, _ = read_pipeline("demo")
    world = SimulationConfig.model_validate(config.data.simulate)
    assert round(world.arriving_share * world.n_items) == 300
