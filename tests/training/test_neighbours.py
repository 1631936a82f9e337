"""Neighbour lists on disk: when they are read, made anew, thrown away; and that models are the same with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.graphs.knn import Neighbours, item_neighbours
from firstlight.models import MODELS
from firstlight.models.base import build_model
from firstlight.training import neighbours
from firstlight.training.config import build_config
from firstlight.training.neighbours import NeighbourCache, cache_folder, remembering_finder
from firstlight.training.run import train
from firstlight.training.run_folder import load_run
from worlds import random_log, random_views

GRAPHS = ["mhcr", "freedom", "mgcn"]


@pytest.fixture
def ranked(monkeypatch):
    """How often the catalogue was ranked."""
    calls: list[int] = []

    def find(features, k, **how):
        calls.append(k)
        return item_neighbours(features, k, **how)

    monkeypatch.setattr(neighbours, "item_neighbours", find)
    return calls


def rows(n: int = 40, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch_stream(seed, "rows"))


def cache(folder: Path, **options) -> NeighbourCache:
    return NeighbourCache(folder, worth=0, **options)


def equal(one: Neighbours, two: Neighbours) -> bool:
    return torch.equal(one.ids, two.ids) and torch.equal(one.similarities, two.similarities)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_second_time_nothing_is_ranked(tmp_path, ranked):
    features, warm = rows(), torch.arange(40) % 4 > 0
    said: list[str] = []
    first = cache(tmp_path)(features, 3, allowed=warm, without_self=True)
    second = cache(tmp_path, emit=lambda name, **values: said.append(values["text"]))(
        features, 3, allowed=warm, without_self=True
    )
    assert len(ranked) == 1
    assert equal(first, second)
    assert equal(first, item_neighbours(features, 3, allowed=warm, without_self=True))
    assert second.ids.dtype == torch.int64
    assert "known from" in said[0]


def test_everything_that_decides_the_lists_is_in_the_name(tmp_path, ranked):
    find, features, warm = cache(tmp_path), rows(), torch.arange(40) % 4 > 0
    other = features.clone()
    other[7, 3] += 1e-3
    asked = [
        (features, 3, {}),
        (other, 3, {}),
        (features, 4, {}),
        (features.double(), 3, {}),
        (features, 3, {"allowed": warm}),
        (features, 3, {"allowed": ~warm}),
        (features, 3, {"without_self": True}),
        (features.reshape(30, 8), 3, {}),
    ]
    for given, k, how in asked:
        assert equal(find(given, k, **how), item_neighbours(given, k, **how))
    assert len(ranked) == len(files(tmp_path)) == len(asked)
    find(features, 3, method="auto")  # comes to exact here
    assert len(ranked) == len(asked)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text("something else"),
        damage_middle,
    ],
)
def test_torn_and_changed_files_are_made_anew(tmp_path, ranked, damage):
    first = cache(tmp_path)(rows(), 3)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    damage(path)
    assert equal(cache(tmp_path)(rows(), 3), first)
    assert len(ranked) == 2
    assert files(tmp_path) == [path]
    assert path.read_bytes() == whole


def test_a_file_of_another_shape_is_not_taken(tmp_path, ranked):
    cache(tmp_path)(rows(), 3)
    cache(tmp_path)(rows(), 5)
    three, five = sorted(files(tmp_path), key=lambda path: path.stat().st_size)
    three.write_bytes(five.read_bytes())
    assert cache(tmp_path)(rows(), 3).ids.shape == (40, 3)
    assert len(ranked) == 3


def test_the_least_recently_used_make_room(tmp_path, ranked):
    find = cache(tmp_path)
    for seed in range(3):
        find(rows(seed=seed), 3)
    size = max(path.stat().st_size for path in files(tmp_path))
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, ns=(10**18 + age, 10**18 + age))
    (tmp_path / ".killed.1.partial.safetensors").write_bytes(b"\0" * size)
    os.utime(tmp_path / ".killed.1.partial.safetensors", ns=(10**18, 10**18))
    find(rows(seed=0), 3)  # read, so the youngest now
    assert len(ranked) == 3
    cache(tmp_path, limit=2 * size)(rows(seed=9), 3)
    assert len(files(tmp_path)) == 2
    find(rows(seed=0), 3)
    find(rows(seed=9), 3)
    assert len(ranked) == 4


def test_nothing_larger_than_the_limit_is_written(tmp_path):
    cache(tmp_path / "cache", limit=100)(rows(), 3)
    assert files(tmp_path / "cache") == []


def test_what_is_found_in_no_time_is_not_kept(tmp_path):
    NeighbourCache(tmp_path / "cache")(rows(), 3)
    NeighbourCache(tmp_path / "cache", worth=40 * 40 * 6 + 1)(rows(), 3)
    assert files(tmp_path / "cache") == []
    NeighbourCache(tmp_path / "cache", worth=40 * 40 * 6)(rows(), 3)
    assert len(files(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    said: list[str] = []
    find = cache(tmp_path / "file" / "cache", emit=lambda name, **values: said.append(values["text"]))
    assert equal(find(rows(), 3), item_neighbours(rows(), 3))
    assert "not kept" in said[0]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    finder = remembering_finder()
    assert isinstance(finder, NeighbourCache)
    assert finder.folder == tmp_path / "here" / "neighbours"
    monkeypatch.setenv("FIRSTLIGHT_CACHE", "")
    assert cache_folder() is None
    assert remembering_finder() is item_neighbours
    monkeypatch.delenv("FIRSTLIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "firstlight"


@pytest.mark.parametrize("name", GRAPHS)
def test_a_second_training_ranks_nothing_and_is_the_same(name, tmp_path, monkeypatch, ranked):
    data = split_dataset(
        simulate(SimulationConfig(n_users=60, n_items=40, mean_clicks=12.0, cover_size=16)).dataset,
        SplitOptions(by="cold-items"),
    )
    monkeypatch.setattr(
        "firstlight.training.run.remembering_finder", lambda emit: cache(tmp_path / "cache", emit=emit)
    )
    quick = ["model.dim=8", "training.epochs=1", "training.batch_size=64"]
    for run in ("first", "second"):
        train(data, build_config(model=name, overrides=quick), tmp_path / run)
        assert (
            len(ranked) == len(files(tmp_path / "cache")) == 6
        )  # three views, of the search and of the refit
    monkeypatch.setattr("firstlight.training.run.remembering_finder", lambda emit: item_neighbours)
    train(data, build_config(model=name, overrides=quick), tmp_path / "plain")
    first, second, plain = (load_run(tmp_path / run).scorer.vectors() for run in ("first", "second", "plain"))
    for one, two, three in zip(first, second, plain, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_model_read_back_ranks_nothing(name, monkeypatch):
    log = random_log(12, 20, 60)
    model = build_model(MODELS.load(name).Config(dim=4), log, torch_stream(0, "init"), random_views(20))

    def never(*args, **how):
        raise AssertionError("the catalogue is ranked again")

    monkeypatch.setattr("firstlight.graphs.knn.nearest", never)
    views = random_views(20)
    again = type(model).from_state(model.config, log, model.state_dict(), views)
    monkeypatch.undo()
    for one, two in zip(model.vectors_for_scoring(), again.vectors_for_scoring(), strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert all(equal(a, b) for a, b in zip(model.neighbour_lists, again.neighbour_lists, strict=True))
    assert again.config == model.config
