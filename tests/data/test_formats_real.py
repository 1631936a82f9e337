"""The published counts of real data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firstlight.data.formats import detect_format, read_dataset

RealData = Callable[[str], Path]


def test_gowalla(real_data: RealData) -> None:
    dataset = read_dataset(real_data("gowalla"))
    assert (dataset.n_users, dataset.n_items) == (29_858, 40_981)
    assert {name: part.n_pairs for name, part in dataset.parts.items()} == {"train": 810_128, "test": 217_242}
    assert dataset.dropped == {}
    assert dataset.item_ids[40_980] == "40980"


def test_movielens_of_the_adaptive_temperature_paper(real_data: RealData) -> None:
    dataset = read_dataset(real_data("movielens-adaptau"))
    assert (dataset.n_users, dataset.n_items) == (6_022, 3_043)
    assert {name: part.n_pairs for name, part in dataset.parts.items()} == {"train": 796_244, "test": 99_455}


def test_tiktok(real_data: RealData) -> None:
    dataset = read_dataset(real_data("tiktok"))
    assert (dataset.n_users, dataset.n_items) == (9_308, 6_710)
    counts = {name: part.n_pairs for name, part in dataset.parts.items()}
    assert counts == {"train": 59_541, "valid": 3_051, "test": 6_130}
    shapes = {name: matrix.values.shape for name, matrix in dataset.catalogue.features.items()}
    assert shapes == {"audio": (6_710, 128), "image": (6_710, 128)}
    assert dataset.test is not None
    assert int(dataset.test.item_degrees[dataset.train.item_degrees == 0].sum()) == 449


def test_movielens_small(real_data: RealData) -> None:
    dataset = read_dataset(real_data("movielens-small"))
    assert (dataset.n_users, dataset.n_items, dataset.train.n_pairs) == (610, 9_742, 100_836)
    items = dataset.catalogue.items
    assert items["cover"].count() == 9_517
    assert items["title"][0] == "Toy Story (1995)"
    assert dataset.train.values is not None
    assert int((dataset.train.values <= 2.5).sum()) == 19_073


def test_movielens_1m(real_data: RealData) -> None:
    folder = real_data("movielens-1m")
    assert detect_format(folder) == "table"
    dataset = read_dataset(folder)
    assert (dataset.n_users, dataset.n_items, dataset.train.n_pairs) == (6_040, 3_883, 1_000_209)
    covered = dataset.catalogue.items["cover"].is_not_null().to_numpy()
    assert round(100 * float(dataset.train.item_degrees[covered].sum()) / dataset.train.n_pairs, 2) == 99.87
