"""The jobs behind the cold-start tables, on a world of a few seconds: what they may see, resuming, the tables."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from firstlight.core.files import read_json
from firstlight.data.simulate import SimulationConfig, simulate

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = SimulationConfig(n_users=120, n_items=80, mean_clicks=24.0, cover_size=16)
QUICK = ["model.dim=8", "training.batch_size=256", "loss.name=softmax", "negatives.name=all"]
GRIDS = {
    "random": ([], {}),
    "popularity": ([], {}),
    "content-knn": ([], {"model.weights": ["{}", "{cover: 0}"]}),
    "mf": (QUICK, {"training.lr": [1e-3, 3e-2]}),
    "mhcr": (QUICK, {"training.lr": [1e-2]}),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory):
    """The module, with folders, data and grids of its own."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("cold_start")
    from firstlight.training import run as training

    root = tmp_path_factory.mktemp("cold")
    world = simulate(SMALL).dataset
    patch.setattr(
        training, "fit_content", training.fit_content
    )  # the jobs keep fitted views; undo it afterwards
    patch.setattr(module, "RUNS", root / "runs")
    patch.setattr(module, "RESULTS", root / "results" / "cold")
    patch.setattr(module, "FOLDERS", {"world": "world"})
    patch.setattr(module, "PROTOCOLS", dict.fromkeys(module.PROTOCOLS, ("world",)))
    patch.setattr(module.cold_grids, "GRIDS", GRIDS)
    patch.setattr(module, "COUNTS", (1, 2, 5))
    patch.setattr(module, "_whole", lambda data: world)
    module.main(["--seeds", "0,1", "--threads", "1", "--set", "training.epochs=2"])
    module.main(["--seeds", "0", "--threads", "1", "--set", "training.epochs=2", "--protocols", "new-users"])
    yield module
    patch.undo()
    for name in ("cold_start", "cold_grids", "render_cold", "render_results", "tables", "machine"):
        sys.modules.pop(name, None)


def record(bench: ModuleType, model: str, protocol: str = "cold-items", seed: int = 0) -> dict:
    return read_json(bench.RESULTS / f"{bench.job_name('world', protocol, model, seed)}.json")


def test_every_job_has_its_numbers(bench):
    for model, (fixed, _) in GRIDS.items():
        found = record(bench, model)
        assert set(found["calibrated"]["protocols"]) == {
            "warm/warm",
            "warm/all",
            "cold/cold",
            "cold/all",
            "all/all",
        }
        assert found["oracle"]["harmonic"] >= found["calibrated"]["harmonic"]["metrics"]["recall@20"] - 1e-6
        assert len(found["trials"]) == len(bench.candidates(model, "world"))
        assert all(setting in found["trials"][0]["settings"] for setting in fixed)
        assert found["budget"]["candidates"] == bench.BUDGET
        # The offset moves nothing within a kind.
        for name in ("warm/warm", "cold/cold"):
            both = [found[kind]["protocols"][name]["metrics"]["recall@20"] for kind in ("raw", "calibrated")]
            assert both[0] == pytest.approx(both[1])


def test_the_best_on_validation_is_chosen(bench):
    for model in GRIDS:
        found = record(bench, model)
        scores = [trial["valid"]["score"] for trial in found["trials"]]
        assert found["chosen"] == int(np.argmax(scores))
    mf, knn = (record(bench, model)["trials"][0]["valid"] for model in ("mf", "content-knn"))
    assert mf["score"] == mf["warm/warm"]  # reads no content: what it does on cold items is noise
    assert knn["score"] == pytest.approx(
        2 * knn["warm/warm"] * knn["cold/cold"] / (knn["warm/warm"] + knn["cold/cold"])
    )


def test_training_never_meets_the_test_part(bench):
    for run in (bench.RUNS).glob("world-*-s0/*"):
        parts = json.loads((run / "result.json").read_text())["dataset"]
        assert "test" not in parts
    dataset, _ = bench.load_data("world", "cold-items", 0)
    from firstlight.training.run_folder import load_run

    for model in ("content-knn", "mf"):  # one without training and one with
        [folder] = (bench.RUNS / bench.job_name("world", "cold-items", model, 0)).iterdir()
        seen = load_run(folder).seen
        np.testing.assert_array_equal(seen.indptr, dataset.train.indptr)
        np.testing.assert_array_equal(seen.items, dataset.train.items)


def test_pools_leave_out_the_other_part_s_cold_items(bench):
    dataset, _ = bench.load_data("world", "cold-items", 0)
    roles = dataset.catalogue.items["role"].to_numpy()
    items = record(bench, "random")["items"]
    never = int(((dataset.train.item_degrees == 0) & (roles == "warm")).sum())
    assert items["cold"] == int((roles == "cold-test").sum()) + never
    assert items["warm"] + items["cold"] == int((roles != "cold-valid").sum())


def test_new_users_are_unknown_to_training(bench):
    dataset, histories = bench.load_data("world", "new-users", 0)
    assert histories.n_pairs > 0
    assert dataset.train.user_degrees[np.flatnonzero(histories.user_degrees)].sum() == 0
    found = record(bench, "mhcr", "new-users")
    assert list(found["known_clicks"]) == ["1", "2", "5"]
    assert found["trials"][0]["settings"] == record(bench, "mhcr")["trials"][0]["settings"]
    assert record(bench, "popularity", "new-users")["known_clicks"]["1"]["users"] > 0
    assert record(bench, "mf", "new-users")["known_clicks"] is None


def test_a_job_that_is_done_stays_and_a_cut_one_goes_on(bench, capsys):
    name = bench.job_name("world", "cold-items", "mf", 0)
    target = bench.RESULTS / f"{name}.json"
    before = read_json(target)
    words = ["--models", "mf", "--seeds", "0", "--threads", "1", "--set", "training.epochs=2"]
    bench.main([*words, "--protocols", "cold-items"])
    assert "is done" in capsys.readouterr().out
    assert read_json(target) == before
    target.unlink()  # cut before the JSON was written, the winner's run being there
    bench.main([*words, "--protocols", "cold-items"])
    after = read_json(target)
    assert after["calibrated"] == before["calibrated"]
    assert after["chosen"] == before["chosen"]


def test_a_grid_beyond_the_budget_is_refused(bench, monkeypatch):
    monkeypatch.setattr(bench.cold_grids, "GRIDS", {"mf": ([], {"training.lr": [1, 2, 3, 4, 5, 6, 7]})})
    with pytest.raises(ValueError, match="budget"):
        bench.candidates("mf", "world")


def test_the_real_grids_make_configs(bench):
    from firstlight.training.config import build_config

    source = importlib.util.spec_from_file_location("cold_grids_fresh", BENCHMARKS / "cold_grids.py")
    fresh = importlib.util.module_from_spec(source)
    source.loader.exec_module(fresh)
    real = ("movielens-small", "movielens-1m", "tiktok")
    protocols = ("cold-items", "given")
    models = [model for model in fresh.GRIDS if "@" not in model]
    for model, data, protocol in itertools.product(models, real, protocols):
        for settings in fresh.candidates(model, data, protocol):
            assert build_config(model=model, overrides=[*bench.COMMON, *settings]).model.name == model
    assert fresh.candidates("mhcr", "tiktok") != fresh.candidates("mhcr", "tiktok", "given")


def test_listing_runs_nothing(bench, capsys):
    bench.main(["--list", "--protocols", "cold-items", "--seeds", "0,7"])
    lines = capsys.readouterr().out.splitlines()
    assert "world-mf-s0: 2 candidates (done)" in lines
    assert "world-mf-s7: 2 candidates" in lines


def test_the_tables(bench, monkeypatch):
    render, tables = importlib.import_module("render_cold"), importlib.import_module("tables")
    root = bench.RESULTS.parents[1]
    monkeypatch.setattr(render, "ROOT", root)
    monkeypatch.setattr(tables, "ROOT", root)
    text = render.cold()
    assert "### world, a fifth of the items without clicks" in text
    assert "mhcr against the best other model" in text
    assert "(fitted on validation)" in text
    assert "(best on test)" in text
    assert "### world, the given split" in text
    assert "DiffMM" in text
    assert "### world, users that training never saw" in text
    assert "6-20 clicks" in text
    # Hits as digits are the same recall that the report has.
    found = record(bench, "mhcr")
    for protocol in ("warm/warm", "cold/cold", "warm/all", "cold/all"):
        values = list(render.user_values(found, protocol).values())
        assert np.mean(values) == pytest.approx(render.recall(found, protocol), abs=1e-6)
    seeds = {seed: record(bench, "mhcr", seed=seed) for seed in (0, 1)}
    test = render.difference(seeds, seeds, "cold/cold")
    assert (test.difference, test.p) == (0, 1)
    assert render.harmonic_difference(seeds, seeds).difference == 0
