"""Cold-start protocols and the offset on cold scores, against rankings made one user and one offset at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import InputError
from firstlight.data.interactions import Interactions
from firstlight.evaluation.calibration import split_lists
from firstlight.evaluation.cold import (
    CalibratedScorer,
    cold_protocols,
    fit_offset,
    harmonic_mean,
    known_clicks_protocol,
    offset_curve,
    oracle_offset,
    paired_harmonic,
)
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import VectorScorer


@dataclass
class TableScorer:
    """A model without vectors: a stored score table."""

    table: torch.Tensor

    @property
    def n_users(self) -> int:
        return self.table.shape[0]

    @property
    def n_items(self) -> int:
        return self.table.shape[1]

    def vectors(self) -> None:
        return None

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        return self.table[users]


class World(NamedTuple):
    scorer: TableScorer
    train: Interactions
    test: Interactions
    cold: np.ndarray
    pool: np.ndarray


def world(seed: int, n_users: int = 25, n_items: int = 30, levels: int = 40) -> World:
    """Whole scores, so that sums with whole offsets are exact and ties many; some users have one kind of target."""
    rng = np.random.default_rng(seed)
    cold = rng.random(n_items) < 0.35
    kind = rng.integers(0, 4, n_users)  # 0: no target, 1: warm ones, 2: cold ones, 3: both
    clicked = rng.random((n_users, n_items)) < 0.15
    clicked[:, cold] = False
    wanted = (rng.random((n_users, n_items)) < 0.2) & ~clicked
    wanted[kind == 0] = False
    wanted[np.ix_(kind == 1, cold)] = False
    wanted[np.ix_(kind == 2, ~cold)] = False
    table = rng.integers(0, levels, (n_users, n_items)).astype(np.float32)
    logs = [Interactions.from_pairs(*np.nonzero(m), n_users, n_items) for m in (clicked, wanted)]
    return World(TableScorer(torch.from_numpy(table)), *logs, cold, rng.random(n_items) < 0.85)


def shifted(w: World, offset: float, scale: float = 1.0) -> TableScorer:
    table = w.scorer.table.clone()
    table[:, w.cold] = table[:, w.cold] * scale + offset
    return TableScorer(table)


def recall(scorer: TableScorer, w: World, of: np.ndarray, among: np.ndarray, k: int) -> float:
    """Mean recall of the targets on items ``of``, one user at a time."""
    values = []
    for user in range(w.test.n_users):
        targets = {int(i) for i in w.test.row(user) if of[i]}
        if targets:
            seen = set(w.train.row(user).tolist())
            left = [i for i in range(w.test.n_items) if among[i] and i not in seen]
            left.sort(key=lambda i: (-float(scorer.table[user, i]), i))
            values.append(len(targets & set(left[:k])) / len(targets))
    return float(np.mean(values)) if values else float("nan")


def everything(w: World) -> np.ndarray:
    return np.ones(len(w.cold), np.bool_)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limited", [False, True])
def test_protocols_against_one_user_at_a_time(seed: int, limited: bool) -> None:
    w = world(seed)
    inside = w.pool if limited else everything(w)
    report = cold_protocols(w.scorer, w.test, [w.train], w.cold, (1, 5, 20), pool=w.pool if limited else None)
    kinds = {"warm": ~w.cold, "cold": w.cold, "all": everything(w)}
    for name, found in report.protocols.items():
        of, among = name.split("/")
        for k in (1, 5, 20):
            expected = recall(w.scorer, w, kinds[of], kinds[among] & inside, k)
            assert found.metrics[f"recall@{k}"] == pytest.approx(expected), (name, k)
    a, b = (report.protocols[name].metrics["recall@5"] for name in ("warm/all", "cold/all"))
    assert report.harmonic["recall@5"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
    assert (report.n_warm, report.n_cold) == ((inside & ~w.cold).sum(), (inside & w.cold).sum())


def test_the_whole_pool_is_an_ordinary_evaluation() -> None:
    w = world(4)
    popularity = w.train.item_degrees
    report = cold_protocols(w.scorer, w.test, [w.train], w.cold, (3, 10), popularity=popularity, seed=2)
    plain = evaluate_ranking(w.scorer, w.test, [w.train], (3, 10), popularity=popularity, seed=2)
    assert report.protocols["all/all"].metrics == pytest.approx(plain.metrics)
    assert report.protocols["all/all"].intervals == plain.intervals
    assert report.groups is not None
    assert report.groups.to_dicts() == plain.groups["clicks"].to_dicts()
    assert report.groups["group"].to_list() == ["0", "1-5", "6-20", "21-100", "101+"]
    assert sum(report.pairs[name] for name in ("warm/all", "cold/all")) == w.test.n_pairs


def test_vectors_and_score_rows_agree() -> None:
    rng = np.random.default_rng(0)
    w = world(5)
    users = torch.from_numpy(rng.integers(-3, 4, (25, 6)).astype(np.float32))
    items = torch.from_numpy(rng.integers(-3, 4, (30, 6)).astype(np.float32))
    by_vectors = cold_protocols(VectorScorer(users, items), w.test, [w.train], w.cold, (5,))
    by_rows = cold_protocols(TableScorer(users @ items.T), w.test, [w.train], w.cold, (5,), block=3)
    assert by_vectors.per_user.equals(by_rows.per_user)


def test_per_user_values_tell_who_has_which_targets() -> None:
    w = world(6)
    table = cold_protocols(w.scorer, w.test, [w.train], w.cold, (5,)).per_user
    has_cold = {int(u) for u, i in zip(w.test.users, w.test.items, strict=True) if w.cold[i]}
    assert table["user"].to_list() == np.flatnonzero(w.test.user_degrees).tolist()
    for row in table.iter_rows(named=True):
        assert (row["cold/all recall@5"] is not None) == (row["user"] in has_cold)
        assert (row["cold/cold ndcg@5"] is not None) == (row["user"] in has_cold)


def test_a_list_longer_than_the_pool_finds_everything() -> None:
    w = world(7)
    report = cold_protocols(w.scorer, w.test, [w.train], w.cold, (100,))
    for name, found in report.protocols.items():
        assert found.metrics["recall@100"] == 1, name
    assert report.harmonic["recall@100"] == 1
    low, high = report.harmonic_intervals["recall@100"]
    assert low == high == 1
    curve = offset_curve(w.scorer, w.test, [w.train], w.cold, [-1e6, 0, 1e6], 100)
    np.testing.assert_allclose(curve.harmonic, 1)
    assert fit_offset(w.scorer, w.test, [w.train], w.cold, 100).offset == 0


@pytest.mark.parametrize("side", ["warm", "cold"])
def test_one_kind_of_target_alone(side: str) -> None:
    w = world(8)
    kept = w.test.select(w.cold[w.test.items] == (side == "cold"))
    report = cold_protocols(w.scorer, kept, [w.train], w.cold, (5,))
    assert set(report.protocols) == {f"{side}/{side}", f"{side}/all", "all/all"}
    assert report.harmonic == {}
    assert report.harmonic_intervals == {}
    assert [row["targets"] for row in report.table()] == [side, side, "all"]
    curve = offset_curve(w.scorer, kept, [w.train], w.cold, [0.0, 1.0], 5)
    missing, there = (curve.warm, curve.cold) if side == "cold" else (curve.cold, curve.warm)
    assert np.isnan(missing).all()
    assert np.isnan(curve.harmonic).all()
    assert np.isfinite(there).all()
    fitted = fit_offset(w.scorer, kept, [w.train], w.cold, 5, scales=(0.5, 1.0))
    assert (fitted.scale, fitted.offset, fitted.fitted) == (1.0, 0.0, False)


def test_no_target_at_all() -> None:
    w = world(9)
    nothing = Interactions.empty(w.test.n_users, w.test.n_items)
    fitted = fit_offset(w.scorer, nothing, [w.train], w.cold)
    assert (fitted.scale, fitted.offset, fitted.fitted) == (1.0, 0.0, False)
    with pytest.raises(InputError, match="nothing to evaluate"):
        cold_protocols(w.scorer, nothing, [w.train], w.cold)
    with pytest.raises(InputError, match="nothing to evaluate"):
        offset_curve(w.scorer, nothing, [w.train], w.cold)


def test_no_cold_item_at_all() -> None:
    w = world(10)
    none = np.zeros(len(w.cold), np.bool_)
    report = cold_protocols(w.scorer, w.test, [w.train], none, (5,))
    assert report.n_cold == 0
    assert report.protocols["warm/all"].metrics == report.protocols["all/all"].metrics
    assert not fit_offset(w.scorer, w.test, [w.train], none, 5).fitted


def test_masks_and_cut_offs_are_checked() -> None:
    w = world(11)
    with pytest.raises(InputError, match="bool mask"):
        cold_protocols(w.scorer, w.test, [w.train], w.cold[:-1])
    with pytest.raises(InputError, match="bool mask"):
        fit_offset(w.scorer, w.test, [w.train], w.cold.astype(np.int64))
    with pytest.raises(InputError, match="cut-offs"):
        cold_protocols(w.scorer, w.test, [w.train], w.cold, (5, 5))
    with pytest.raises(InputError, match="scale"):
        offset_curve(w.scorer, w.test, [w.train], w.cold, scale=0)
    with pytest.raises(InputError, match="scale"):
        fit_offset(w.scorer, w.test, [w.train], w.cold, scales=(1.0, -1.0))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.sampled_from([1, 3, 8, 40]),
    levels=st.sampled_from([3, 12, 60]),
    scale=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_curve_is_exact(seed: int, k: int, levels: int, scale: float) -> None:
    w = world(seed, n_users=8, n_items=16, levels=levels)
    if w.test.n_pairs == 0:
        return
    offsets = [-61.0, -7.0, -1.5, 0.0, 1.0, 2.0, 9.0, 61.0]
    curve = offset_curve(w.scorer, w.test, [w.train], w.cold, offsets, k, scale=scale, pool=w.pool)
    assert curve.offsets.tolist() == offsets
    for offset, warm, cold in zip(offsets, curve.warm, curve.cold, strict=True):
        moved = shifted(w, offset, scale)
        np.testing.assert_allclose(warm, recall(moved, w, ~w.cold, w.pool, k), atol=1e-12)
        np.testing.assert_allclose(cold, recall(moved, w, w.cold, w.pool, k), atol=1e-12)


def test_a_curve_without_a_grid_covers_where_lists_change() -> None:
    w = world(12)
    curve = offset_curve(w.scorer, w.test, [w.train], w.cold, k=5)
    assert 0.0 in curve.offsets
    assert len(curve.offsets) == 201
    assert (np.diff(curve.warm) <= 1e-12).all()  # a higher offset only takes places from warm items
    assert (np.diff(curve.cold) >= -1e-12).all()
    assert curve.cold[-1] > curve.cold[0]


@pytest.mark.parametrize("levels", [4, 15])
@pytest.mark.parametrize("seed", range(6))
def test_the_fitted_offset_is_the_best_of_all(seed: int, levels: int) -> None:
    w = world(seed, levels=levels)
    exact = fit_offset(w.scorer, w.test, [w.train], w.cold, 5, slack=0)
    # Scores are whole, so lists change at whole offsets alone: these, where scores tie, and halves see every list.
    grid = np.arange(-20, 20.5, 0.5)
    found = []
    for offset in grid:
        moved = shifted(w, offset)
        pair = [recall(moved, w, kind, everything(w), 5) for kind in (~w.cold, w.cold)]
        found.append(float(harmonic_mean(*pair)))
    assert exact.fitted
    assert exact.harmonic == pytest.approx(max(found))
    assert exact == oracle_offset(w.scorer, w.test, [w.train], w.cold, 5)
    lenient = fit_offset(w.scorer, w.test, [w.train], w.cold, 5, slack=0.1)
    stretches = max(value for value, offset in zip(found, grid, strict=True) if offset % 1)
    assert lenient.harmonic >= 0.9 * stretches - 1e-12
    assert lenient == fit_offset(w.scorer, w.test, [w.train], w.cold, 5, slack=0.1, block=2)


def test_a_scale_is_taken_where_it_helps() -> None:
    w = world(13)
    half = TableScorer(w.scorer.table.clone())
    half.table[:, w.cold] *= 0.25
    plain = fit_offset(half, w.test, [w.train], w.cold, 5, slack=0)
    scaled = fit_offset(half, w.test, [w.train], w.cold, 5, scales=(0.25, 0.5, 1.0, 2.0, 4.0), slack=0)
    original = fit_offset(w.scorer, w.test, [w.train], w.cold, 5, slack=0)
    assert scaled.harmonic >= max(plain.harmonic, original.harmonic) - 1e-12
    same = fit_offset(half, w.test, [w.train], w.cold, 100, scales=(4.0, 1.0, 0.25))
    assert same.scale == 1.0  # every scale finds everything: the nearest to 1 wins


def test_an_offset_that_was_taken_away_is_found_again() -> None:
    w = world(14)
    before = fit_offset(w.scorer, w.test, [w.train], w.cold, 5)
    after = fit_offset(shifted(w, -100.0), w.test, [w.train], w.cold, 5)
    assert after.offset == pytest.approx(before.offset + 100)
    assert after.harmonic == pytest.approx(before.harmonic)


@pytest.mark.parametrize("with_vectors", [False, True])
def test_the_calibrated_scorer_does_what_the_fit_promised(with_vectors: bool) -> None:
    rng = np.random.default_rng(3)
    w = world(15)
    users = torch.from_numpy(rng.standard_normal((25, 6)).astype(np.float32))
    items = torch.from_numpy(rng.standard_normal((30, 6)).astype(np.float32))
    items[torch.from_numpy(w.cold)] *= 0.2  # cold vectors are often short
    scorer = VectorScorer(users, items) if with_vectors else TableScorer(users @ items.T)
    fitted = fit_offset(scorer, w.test, [w.train], w.cold, 5, scales=(0.5, 1.0, 3.0), pool=w.pool)
    moved = CalibratedScorer(scorer, w.cold, fitted.scale, fitted.offset)
    report = cold_protocols(moved, w.test, [w.train], w.cold, (5,), pool=w.pool)
    assert report.harmonic["recall@5"] == pytest.approx(fitted.harmonic)
    assert report.protocols["warm/all"].metrics["recall@5"] == pytest.approx(fitted.warm)
    assert report.protocols["cold/all"].metrics["recall@5"] == pytest.approx(fitted.cold)
    assert (moved.vectors() is not None) == with_vectors
    rows = moved.scores(torch.arange(4))
    expected = (users @ items.T)[:4].clone()
    expected[:, w.cold] = expected[:, w.cold] * fitted.scale + fitted.offset
    torch.testing.assert_close(rows, expected)


def test_merged_lists_keep_the_order_of_ties() -> None:
    scorer = TableScorer(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]))
    cold = np.array([False, True, False, True, False])
    lists = split_lists(scorer, np.array([0]), [], cold, 4)
    assert lists.merged().tolist() == [[1, 2, 3, 0]]
    assert lists.warm_ids.tolist() == [[2, 0, 4, -1]]


def test_harmonic_mean_by_hand() -> None:
    np.testing.assert_allclose(harmonic_mean([0.2, 0.0, 0.0, 1.0], [0.6, 0.5, 0.0, 1.0]), [0.3, 0, 0, 1])


def test_harmonic_intervals_hold_the_estimate_and_repeat() -> None:
    w = world(16, n_users=120)
    first = cold_protocols(w.scorer, w.test, [w.train], w.cold, (5, 20), seed=1)
    second = cold_protocols(w.scorer, w.test, [w.train], w.cold, (5, 20), seed=1)
    assert first.harmonic_intervals == second.harmonic_intervals
    assert set(first.harmonic) == {"recall@5", "recall@20", "ndcg@5", "ndcg@20"}
    for name, (low, high) in first.harmonic_intervals.items():
        assert low < first.harmonic[name] < high


def test_paired_harmonic() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((400, 2))
    first[:100, 0] = np.nan
    first[350:, 1] = np.nan
    same = paired_harmonic(first, first)
    assert (same.difference, same.interval, same.p) == (0, (0, 0), 1)
    better = paired_harmonic(first, first + 0.1, seed=3)
    a, b = (harmonic_mean(*np.nanmean(first + shift, axis=0)) for shift in (0, 0.1))
    assert better.difference == pytest.approx(float(b - a))
    assert 0 < better.interval[0] < better.difference < better.interval[1]
    assert better.p < 0.01
    noisy = first + rng.normal(0, 1, first.shape)
    assert paired_harmonic(first, noisy).p > 0.01
    with pytest.raises(InputError, match="same users"):
        paired_harmonic(first, np.nan_to_num(first))
    with pytest.raises(InputError, match="warm and cold"):
        paired_harmonic(first[:100], first[:100])


def test_known_clicks() -> None:
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.standard_normal((40, 8)).astype(np.float32))
    # Users of one taste each: more clicks tell the taste better.
    tastes = torch.from_numpy(rng.standard_normal((60, 8)).astype(np.float32))
    best = (tastes @ items.T).topk(9, dim=1).indices.numpy()
    best[:20, 5:] = best[:20, :4]  # these have five clicks only
    users = np.repeat(np.arange(60), 9)
    log = Interactions.from_pairs(users, best.reshape(-1), 60, 40)
    shown: dict[int, Interactions] = {}

    def encode(known: Interactions) -> torch.Tensor:
        shown[int(known.user_degrees.max())] = known
        rows = [items[known.row(u).astype(np.int64)].sum(0) for u in range(known.n_users)]
        return torch.stack(rows)

    found = known_clicks_protocol(encode, items, log, (5,), (1, 2, 5), seed=4)
    assert list(found) == [1, 2, 5]
    for count, evaluation in found.items():
        assert evaluation.n_users == 40  # the others have no more than five clicks
        assert evaluation.per_user["n_targets"].to_list() == [4] * 40  # the same for every count
        assert (shown[count].user_degrees[20:] == count).all()
        assert shown[count].union(log).n_pairs == log.n_pairs  # only own clicks
        assert evaluation.unreachable == 0
    assert shown[1].union(shown[2]).n_pairs == shown[2].n_pairs  # nested
    assert shown[2].union(shown[5]).n_pairs == shown[5].n_pairs
    assert found[5].metrics["recall@5"] > found[1].metrics["recall@5"]
    again = known_clicks_protocol(encode, items, log, (5,), (1, 2, 5), seed=4)
    assert again[2].per_user.equals(found[2].per_user)
    with pytest.raises(InputError, match="more than 9"):
        known_clicks_protocol(encode, items, log, counts=(9,))
    with pytest.raises(InputError, match="at least 1"):
        known_clicks_protocol(encode, items, log, counts=(0, 1))
