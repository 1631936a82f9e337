"""A measured run once more, on everything."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import firstlight as fl
from firstlight.core.errors import InputError
from firstlight.data.folder import write_dataset
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.training.config import build_config
from firstlight.training.recommend import recommend
from firstlight.training.refit import everything, refit_config
from firstlight.training.run import train
from firstlight.training.run_folder import load_run

QUICK = [
    "model.dim=8",
    "training.epochs=6",
    "training.eval_every=1",
    "training.patience=2",
    "training.batch_size=64",
]


@pytest.fixture(scope="module", params=["mf", "mhcr", "popularity"])
def measured(request, tmp_path_factory):
    """A dataset that was split, and a run on it."""
    folder = tmp_path_factory.mktemp("measured")
    world = simulate(SimulationConfig(n_users=120, n_items=80, mean_clicks=20.0, cover_size=16)).dataset
    data = split_dataset(world, SplitOptions(by="cold-items"))
    write_dataset(data, folder / "data")
    quick = [] if request.param == "popularity" else QUICK
    train(data, build_config(model=request.param, overrides=quick, seed=3), folder / "run")
    return data, folder / "data", load_run(folder / "run")


def test_what_the_search_found_gives_the_very_model_that_it_led_to(measured, tmp_path):
    """The schedule, the seed and the place of cold items go along."""
    data, _, run = measured
    train(data, refit_config(run), tmp_path / "again")
    again = load_run(tmp_path / "again")
    assert again.result["metrics"] == run.result["metrics"]
    mine, theirs = again.model.state_dict(), run.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_on_everything_no_list_holds_a_click(measured, firstlight, tmp_path):
    data, folder, run = measured
    done = firstlight("train", folder, "--refit", run.path, "--out", tmp_path / "all", "--json")
    assert done.code == 0
    everywhere = load_run(tmp_path / "all")
    log = everything(data).train
    assert everywhere.seen.n_pairs == log.n_pairs == sum(part.n_pairs for part in data.parts.values())
    assert list(everywhere.parts) == ["train"]
    assert everywhere.config.seed == 3
    lists = pl.concat(list(recommend(everywhere, k=20)))
    clicks = pl.DataFrame({"user": data.user_ids.gather(log.users), "item": data.item_ids.gather(log.items)})
    assert len(lists.join(clicks, on=["user", "item"])) == 0
    missed = pl.concat(list(recommend(run, k=20))).join(clicks, on=["user", "item"])
    assert len(missed) > 0  # the measured run does not know its test part
    if run.config.model.name == "mhcr":
        assert np.isclose(float(everywhere.model.cold_offset), run.result["found"]["calibration"]["offset"])


def test_lists_of_a_measured_run_tell_what_it_does_not_know(measured, firstlight, tmp_path):
    data, folder, run = measured
    asked = firstlight("recommend", run.path, "--out", tmp_path / "lists.csv")
    words = f"does not know the {data.test.n_pairs:,} clicks of its test part"
    assert words in " ".join(asked.err.split())
    firstlight("train", folder, "--refit", run.path, "--out", tmp_path / "all")
    asked = firstlight("recommend", tmp_path / "all", "--out", tmp_path / "all.csv")
    assert asked.code == 0
    assert "test part" not in asked.err
    if run.config.model.name != "popularity":
        told = firstlight("export", run.path, tmp_path / "bundle")
        assert words in " ".join(told.err.split())


def test_only_threads_go_with_it(measured, firstlight, tmp_path):
    _, folder, run = measured
    refused = firstlight("train", folder, "--refit", run.path, "--epochs", 3, "--out", tmp_path / "all")
    assert refused.code == 2
    assert "takes all settings from its run" in refused.err
    with pytest.raises(InputError, match="takes all settings"):
        fl.train(folder, out=tmp_path / "all", refit=run.path, seed=1)
    for change in ("training.stop_after=2", "training.cold_offset=0.5"):
        refused = firstlight("train", folder, "--set", change, "--out", tmp_path / "all")
        assert refused.code == 2
        assert "go with selection=none" in " ".join(refused.err.split())
    assert fl.train(folder, out=tmp_path / "all", refit=run.path, threads=1, progress=False).path.exists()
