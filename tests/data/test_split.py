"""Splits: disjoint, complete, repeatable, and each true to its own rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.dataset import Dataset
from firstlight.data.interactions import Interactions
from firstlight.data.split import SplitOptions, carve_validation, hash_parts, split_dataset

SPLITS = ("random", "time", "leave-last", "cold-items")


def dataset_of(log: Interactions, **changes: object) -> Dataset:
    base = Dataset(
        name="toy",
        user_ids=pl.Series([f"u{u}" for u in range(log.n_users)], dtype=pl.String),
        item_ids=pl.Series([f"i{i}" for i in range(log.n_items)], dtype=pl.String),
        train=log,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def rows_of(log: Interactions | None) -> set[tuple[int, int, int, float]]:
    """Pairs with their time and value, so that a value that moved to another pair is noticed."""
    if log is None:
        return set()
    times = log.times if log.times is not None else np.zeros(log.n_pairs, np.int64)
    values = log.values if log.values is not None else np.zeros(log.n_pairs, np.float32)
    return set(zip(log.users.tolist(), log.items.tolist(), times.tolist(), values.tolist(), strict=True))


def random_log(seed: int, n_users: int, n_items: int, n_pairs: int, span: int = 1000) -> Interactions:
    rng = np.random.default_rng(seed)
    cells = rng.choice(n_users * n_items, size=n_pairs, replace=False)
    return Interactions.from_pairs(
        cells // n_items,
        cells % n_items,
        n_users,
        n_items,
        times=rng.integers(0, span, n_pairs),
        values=rng.random(n_pairs).astype(np.float32),
    )


@st.composite
def logs(draw: st.DrawFn) -> Interactions:
    users, items = draw(st.integers(1, 8)), draw(st.integers(8, 20))
    n_pairs = draw(st.integers(5, users * items))
    log = random_log(
        draw(st.integers(0, 2**20)), users, items, n_pairs, span=draw(st.sampled_from([1, 4, 99]))
    )
    return log


@settings(max_examples=150, deadline=None)
@given(
    log=logs(),
    by=st.sampled_from(SPLITS),
    shares=st.sampled_from([(0.1, 0.2), (0.0, 0.3), (0.25, 0.0), (0.2, 0.2)]),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_and_complete_and_repeat(
    log: Interactions, by: str, shares: tuple[float, float], seed: int
) -> None:
    options = SplitOptions(by, seed, *shares)  # type: ignore[arg-type]
    if by == "cold-items" and np.count_nonzero(log.item_degrees) < 4:
        return
    split = split_dataset(dataset_of(log), options)
    parts = [rows_of(part) for part in (split.train, split.valid, split.test)]
    assert set.union(*parts) == rows_of(log)
    assert sum(map(len, parts)) == log.n_pairs
    again = split_dataset(dataset_of(log), options)
    assert split.split == again.split
    assert split.content_hash == again.content_hash
    assert split.split is not None
    assert split.split.hash == hash_parts({"train": split.train, "valid": split.valid, "test": split.test})
    for part in split.parts.values():
        assert (part.n_users, part.n_items) == (log.n_users, log.n_items)
        assert all(np.all(np.diff(part.row(user)) > 0) for user in range(part.n_users))


@settings(max_examples=100, deadline=None)
@given(log=logs(), share=st.sampled_from([0.0, 0.1, 0.5, 0.95]), seed=st.integers(0, 99))
def test_carving_spares_small_users_and_leaves_everyone_a_pair(
    log: Interactions, share: float, seed: int
) -> None:
    rest, valid = carve_validation(log, share, seed)
    assert rows_of(rest) | rows_of(valid) == rows_of(log)
    assert rest.n_pairs + valid.n_pairs == log.n_pairs
    assert np.all(rest.user_degrees[log.user_degrees > 0] >= 1)
    assert np.all(valid.user_degrees[log.user_degrees < 3] == 0)
    expected = log.user_degrees * share
    assert np.all(valid.user_degrees <= np.ceil(expected))
    floor = np.minimum(np.floor(expected), log.user_degrees - 1)
    assert np.all(valid.user_degrees[log.user_degrees >= 3] >= floor[log.user_degrees >= 3])
    assert carve_validation(log, share, seed)[1].content_hash() == valid.content_hash()


def test_shares_hold_on_average_even_for_small_users() -> None:
    # Four pairs each and a share of 0.1: nearest rounding would hold nothing out at all.
    users = np.repeat(np.arange(5000), 4)
    log = Interactions.from_pairs(users, np.tile(np.arange(4), 5000), 5000, 4)
    _, valid = carve_validation(log, 0.1, seed=3)
    assert valid.n_pairs / log.n_pairs == pytest.approx(0.1, abs=0.01)
    # Each of the four positions is as likely as the others.
    assert valid.item_degrees / valid.n_pairs == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_another_seed_gives_another_split() -> None:
    log = random_log(0, 30, 40, 400)
    for by in ("random", "cold-items"):
        hashes = {split_dataset(dataset_of(log), SplitOptions(by, seed)).split.hash for seed in range(5)}  # type: ignore
        assert len(hashes) == 5


def test_random_split_keeps_a_training_pair_per_user() -> None:
    log = random_log(1, 50, 60, 700)
    split = split_dataset(dataset_of(log), SplitOptions("random", 0, 0.4, 0.5))
    assert np.all(split.train.user_degrees[log.user_degrees > 0] >= 1)
    assert split.split is not None
    assert (split.split.name, split.split.seed) == ("random", 0)


def test_time_split_known_answer_with_ties_by_user_then_item() -> None:
    # Ten pairs; all at second 5 but for one early and one late. Shares .2/.2: six train, two valid, two test.
    users = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    items = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    times = np.array([9, 5, 5, 5, 5, 5, 5, 5, 5, 1])
    log = Interactions.from_pairs(users, items, 2, 5, times=times)
    split = split_dataset(dataset_of(log), SplitOptions("time", valid_share=0.2, test_share=0.2))
    pairs = {name: [(u, i) for u, i, *_ in sorted(rows_of(part))] for name, part in split.parts.items()}
    assert pairs["train"] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 4)]
    assert pairs["valid"] == [(1, 1), (1, 2)]
    assert pairs["test"] == [(0, 0), (1, 3)]
    assert split.split is not None
    assert split.split.seed is None


def test_time_split_roles_follow_the_first_part_of_an_item() -> None:
    # Item 0 trains, item 1 begins in valid, item 2 in test, item 3 has no pair.
    log = Interactions.from_pairs(
        np.array([0, 1, 2, 3, 0, 1, 2, 3, 4, 5]),
        np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 0]),
        6,
        4,
        times=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    )
    split = split_dataset(dataset_of(log), SplitOptions("time", valid_share=0.2, test_share=0.4))
    assert split.catalogue.items["role"].to_list() == ["warm", "cold-valid", "cold-test", "warm"]


@settings(max_examples=50, deadline=None)
@given(log=logs())
def test_time_split_never_learns_from_the_future(log: Interactions) -> None:
    split = split_dataset(dataset_of(log), SplitOptions("time"))
    ordered = [part.times for part in split.parts.values() if part.times is not None and part.n_pairs]
    for earlier, later in pairwise(ordered):
        assert earlier.max() <= later.min()


def test_leave_last_known_answer() -> None:
    log = Interactions.from_pairs(
        np.array([0, 0, 0, 0, 1, 1, 2, 2, 2]),
        np.array([0, 1, 2, 3, 0, 1, 1, 2, 3]),
        4,
        4,
        times=np.array([40, 10, 30, 20, 1, 2, 7, 7, 7]),
    )
    split = split_dataset(dataset_of(log), SplitOptions("leave-last"))
    pairs = {name: [(u, i) for u, i, *_ in sorted(rows_of(part))] for name, part in split.parts.items()}
    # User 1 has two pairs and stays; user 2's ties fall in item order.
    assert pairs["train"] == [(0, 1), (0, 3), (1, 0), (1, 1), (2, 1)]
    assert pairs["valid"] == [(0, 2), (2, 2)]
    assert pairs["test"] == [(0, 0), (2, 3)]


@settings(max_examples=100, deadline=None)
@given(log=logs(), seed=st.integers(0, 99))
def test_cold_items_leave_training_whole(log: Interactions, seed: int) -> None:
    clicked = np.flatnonzero(log.item_degrees)
    if len(clicked) < 4:
        return
    split = split_dataset(dataset_of(log), SplitOptions("cold-items", seed, 0.1, 0.2))
    role = split.catalogue.items["role"].to_numpy()
    assert len(role) == log.n_items
    for name, kept_in, share in (("cold-test", split.test, 0.2), ("cold-valid", split.valid, 0.1)):
        cold = np.flatnonzero(role == name)
        assert len(cold) == max(1, round(share * len(clicked)))
        assert kept_in is not None
        assert kept_in.item_degrees[cold].tolist() == log.item_degrees[cold].tolist()
        assert np.all(log.item_degrees[cold] > 0)
        assert split.train.item_degrees[cold].sum() == 0
    assert np.all(role[log.item_degrees == 0] == "warm")


def test_cold_items_has_warm_targets_in_both_held_out_parts() -> None:
    log = random_log(5, 200, 100, 4000)
    split = split_dataset(dataset_of(log), SplitOptions("cold-items", 1, 0.1, 0.2))
    role = split.catalogue.items["role"].to_numpy()
    assert split.valid is not None
    assert split.test is not None
    warm_pairs = log.item_degrees[role == "warm"].sum()
    assert (role[split.test.items] == "warm").sum() / warm_pairs == pytest.approx(0.2, abs=0.02)
    assert (role[split.valid.items] == "warm").sum() / warm_pairs == pytest.approx(0.1, abs=0.02)
    assert not np.any(role[split.valid.items] == "cold-test")
    assert not np.any(role[split.test.items] == "cold-valid")


def test_cold_items_are_drawn_without_regard_to_popularity() -> None:
    # Item i has i + 1 pairs: under a uniform draw each item is cold equally often.
    users = np.concatenate([np.arange(i + 1) for i in range(20)])
    items = np.concatenate([np.full(i + 1, i) for i in range(20)])
    log = Interactions.from_pairs(users, items, 20, 21)
    often = np.zeros(21)
    for seed in range(600):
        split = split_dataset(dataset_of(log), SplitOptions("cold-items", seed, 0.0, 0.2))
        often += split.catalogue.items["role"].to_numpy() == "cold-test"
    assert often[20] == 0
    # 600 draws at probability .2: four standard errors are 39.
    assert np.all(np.abs(often[:20] - 120) < 39)


def test_splitting_again_pools_the_parts_and_replaces_the_role() -> None:
    log = random_log(2, 20, 30, 300)
    cold = split_dataset(dataset_of(log), SplitOptions("cold-items", 1))
    once = split_dataset(dataset_of(log), SplitOptions("random", 4))
    twice = split_dataset(cold, SplitOptions("random", 4))
    assert twice.content_hash == once.content_hash
    assert "role" in cold.catalogue.items.columns
    assert "role" not in twice.catalogue.items.columns
    assert twice.dropped == {}


def test_other_catalogue_columns_stay_aligned() -> None:
    log = random_log(2, 20, 30, 300)
    titles = pl.DataFrame({"title": [f"t{i}" for i in range(30)], "role": ["cold-test"] * 30})
    split = split_dataset(dataset_of(log, catalogue=Catalogue(items=titles)), SplitOptions("cold-items"))
    assert split.catalogue.items["title"].to_list() == titles["title"].to_list()
    assert split.catalogue.items["role"].value_counts().height == 3


def test_a_pair_in_two_parts_is_counted() -> None:
    log = random_log(2, 10, 10, 50)
    everything = dataset_of(log, test=log.select(np.arange(50) < 7))
    split = split_dataset(everything, SplitOptions("random"))
    assert split.dropped == {"pair in several parts": 7}
    assert sum(part.n_pairs for part in split.parts.values()) == 50


def test_an_empty_part_does_not_cost_the_timestamps() -> None:
    log = random_log(2, 10, 10, 50)
    dataset = dataset_of(log, valid=Interactions.empty(10, 10))
    assert split_dataset(dataset, SplitOptions("time")).train.times is not None


@pytest.mark.parametrize("by", ["time", "leave-last"])
def test_a_split_in_time_without_times_is_refused(by: str) -> None:
    log = Interactions.from_pairs(np.array([0, 0, 0]), np.array([0, 1, 2]), 1, 3)
    with pytest.raises(InputError, match="needs timestamps") as caught:
        split_dataset(dataset_of(log), SplitOptions(by))  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "random" in caught.value.hint


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.0), (float("nan"), 0.2)])
def test_impossible_shares_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="shares"):
        SplitOptions("random", 0, *shares)
    log = random_log(2, 10, 10, 50)
    with pytest.raises(InputError, match="shares"):
        carve_validation(log, 1.0, 0)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="leave-first"):
        SplitOptions("leave-first")  # type: ignore[arg-type]


def test_cold_items_with_too_few_items_is_refused() -> None:
    log = Interactions.from_pairs(np.array([0, 0]), np.array([0, 1]), 1, 5)
    with pytest.raises(InputError, match="no warm item"):
        split_dataset(dataset_of(log), SplitOptions("cold-items"))


def test_a_dataset_without_pairs_splits_into_nothing() -> None:
    log = Interactions.empty(3, 4)
    split = split_dataset(dataset_of(log), SplitOptions("random"))
    assert (split.train.n_pairs, split.valid, split.test) == (0, None, None)
