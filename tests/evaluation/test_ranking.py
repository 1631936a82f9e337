"""Ranking metrics against ir-measures, a plain double loop and answers known by hand."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from firstlight.core.errors import FirstlightError, InputError
from firstlight.data.interactions import Interactions
from firstlight.evaluation.groups import click_groups, popularity_groups
from firstlight.evaluation.metrics import gini
from firstlight.evaluation.ranking import evaluate_lists, evaluate_ranking, hit_matrix
from firstlight.evaluation.scorer import Scorer, VectorScorer, excluded_items, rank

KS = (1, 3, 10)


def random_log(rng: np.random.Generator, n_users: int, n_items: int, density: float) -> Interactions:
    users, items = np.nonzero(rng.random((n_users, n_items)) < density)
    return Interactions.from_pairs(users, items, n_users, n_items)


class TableScorer:
    """A model without vectors: a stored score table."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

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


def world(seed: int = 0) -> tuple[TableScorer, Interactions, Interactions, np.random.Generator]:
    rng = np.random.default_rng(seed)
    train = random_log(rng, 40, 60, 0.15)
    every = random_log(rng, 40, 60, 0.12)
    overlap = np.isin(every.users * 60 + every.items, train.users * 60 + train.items)
    test = every.select(~overlap)
    order = np.argsort(rng.random((40, 60)), axis=1)
    return TableScorer(torch.from_numpy(order.astype(np.float32))), train, test, rng


def brute(scores: np.ndarray, train: Interactions, test: Interactions, k: int) -> dict[str, list[float]]:
    """The definitions, one user and one rank at a time."""
    out: dict[str, list[float]] = {
        m: [] for m in ("recall", "ndcg", "precision", "map", "map_trec", "mrr", "hit")
    }
    for user in range(test.n_users):
        targets = set(test.row(user).tolist())
        if not targets:
            continue
        seen = set(train.row(user).tolist())
        ranked = sorted(
            (i for i in range(test.n_items) if i not in seen), key=lambda i: (-scores[user, i], i)
        )
        hits, dcg, precision_sum, first = 0, 0.0, 0.0, 0.0
        for place, item in enumerate(ranked[:k], start=1):
            if item in targets:
                hits += 1
                dcg += 1 / math.log2(place + 1)
                precision_sum += hits / place
                first = first or 1 / place
        reachable = min(len(targets), k)
        out["recall"].append(hits / len(targets))
        out["ndcg"].append(dcg / sum(1 / math.log2(r + 1) for r in range(1, reachable + 1)))
        out["precision"].append(hits / k)
        out["map"].append(precision_sum / reachable)
        out["map_trec"].append(precision_sum / len(targets))
        out["mrr"].append(first)
        out["hit"].append(float(hits > 0))
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_against_double_loop(seed: int) -> None:
    scorer, train, test, _ = world(seed)
    result = evaluate_ranking(scorer, test, [train], KS)
    for k in KS:
        for name, values in brute(scorer.table.numpy(), train, test, k).items():
            np.testing.assert_allclose(result.per_user[f"{name}@{k}"].to_numpy(), values, atol=1e-12)
            assert result.metrics[f"{name}@{k}"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("k", KS)
def test_against_ir_measures(k: int) -> None:
    scorer, train, test, _ = world(3)
    result = evaluate_ranking(scorer, test, [train], KS)
    users = np.flatnonzero(test.user_degrees)
    qrels = {str(u): {str(i): 1 for i in test.row(u)} for u in users}
    [(_, best)] = rank(scorer, users, k, [train])
    run = {
        str(user): {str(int(i)): float(s) for i, s in zip(ids, scores, strict=True) if i >= 0}
        for user, ids, scores in zip(users, best.ids, best.scores, strict=True)
    }
    ours = {
        nDCG @ k: "ndcg",
        P @ k: "precision",
        R @ k: "recall",
        AP @ k: "map_trec",
        RR: "mrr",  # the run is cut at k
        Success @ k: "hit",
    }
    values = {
        (metric.measure, metric.query_id): metric.value
        for metric in ir_measures.iter_calc(list(ours), qrels, run)
    }
    for measure, name in ours.items():
        for user, value in zip(users, result.per_user[f"{name}@{k}"], strict=True):
            assert value == pytest.approx(values[measure, str(user)], abs=1e-6)
    for user, value, size in zip(
        users, result.per_user[f"map@{k}"], result.per_user["n_targets"], strict=True
    ):
        assert value == pytest.approx(values[AP @ k, str(user)] * size / min(size, k), abs=1e-6)


def test_perfect_ranker() -> None:
    _, train, test, _ = world(5)
    table = torch.zeros(40, 60)
    table[test.users.astype(np.int64), test.items.astype(np.int64)] = 1
    result = evaluate_ranking(TableScorer(table), test, [train], (3, 20))
    sizes = test.user_degrees[test.user_degrees > 0]
    for k in (3, 20):
        assert result.metrics[f"recall@{k}"] == pytest.approx(np.minimum(1, k / sizes).mean())
        for name in ("ndcg", "map", "mrr", "hit"):
            assert result.metrics[f"{name}@{k}"] == pytest.approx(1)


def test_by_hand() -> None:
    """One list [4, 2, 9, …] for targets {2, 7, 8}: one hit, at rank 2."""
    test = Interactions.from_pairs(np.array([1, 1, 1]), np.array([2, 7, 8]), 2, 10)
    result = evaluate_lists(np.array([[4, 2, 9]]), np.array([1]), test, (1, 3))
    got = result.metrics
    assert got["hit@1"] == got["recall@1"] == got["mrr@1"] == 0
    assert got["recall@3"] == pytest.approx(1 / 3)
    assert got["precision@3"] == pytest.approx(1 / 3)
    assert got["map@3"] == got["map_trec@3"] == pytest.approx(0.5 / 3)
    assert got["mrr@3"] == 0.5
    assert got["ndcg@3"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3) + 0.5))
    assert result.n_users == 1
    assert result.per_user["user"].to_list() == [1]


def test_vectors_and_score_rows_agree() -> None:
    rng = np.random.default_rng(2)
    train, test = random_log(rng, 90, 3000, 0.004), random_log(rng, 90, 3000, 0.004)
    users = torch.from_numpy(rng.integers(-2, 3, (90, 6)).astype(np.float32))
    items = torch.from_numpy(rng.integers(-2, 3, (3000, 6)).astype(np.float32))
    pool = rng.random(3000) < 0.8
    by_vectors = VectorScorer(users, items)
    assert isinstance(by_vectors, Scorer)
    by_rows = TableScorer(users @ items.T)
    for allowed in (None, pool):
        for block in (None, 8):
            a = evaluate_ranking(by_vectors, test, [train], KS, pool=allowed, block=block)
            b = evaluate_ranking(by_rows, test, [train], KS, pool=allowed, block=block)
            assert a.metrics == b.metrics
            assert a.per_user.equals(b.per_user)


def test_seen_items_of_all_stages_are_left_out() -> None:
    scorer, train, test, rng = world(7)
    valid = random_log(rng, 40, 60, 0.1)
    before = scorer.table.clone()
    for rows, best in rank(scorer, np.arange(40)[::-1].copy(), 60, [train, valid]):
        for position, ids in zip(range(rows.start, rows.stop), best.ids.numpy(), strict=True):
            user = 39 - position
            expected = set(range(60)) - set(train.row(user)) - set(valid.row(user))
            assert set(ids[ids >= 0]) == expected
            assert (ids[len(expected) :] == -1).all()
    assert torch.equal(scorer.table, before)  # masking must not write into the model's own table
    result = evaluate_ranking(scorer, test, [train, valid], KS)
    both = len({*zip(test.users, test.items, strict=True)} & {*zip(valid.users, valid.items, strict=True)})
    assert result.unreachable == both > 0


def test_excluded_items_of_chosen_users() -> None:
    _, train, test, _ = world(8)
    users = np.array([5, 3, 3, 20])
    indptr, items = excluded_items(users, [train, test])
    for position, user in enumerate(users):
        row = items[indptr[position] : indptr[position + 1]]
        assert row.tolist() == [*train.row(user), *test.row(user)]
    assert excluded_items(users, []) is None


def test_pool_is_all_that_is_ranked() -> None:
    scorer, train, test, rng = world(9)
    pool = rng.random(60) < 0.4
    result = evaluate_ranking(scorer, test, [train], (5,), pool=pool, popularity=train.item_degrees)
    assert result.unreachable == int((~pool[test.items]).sum())
    users = np.flatnonzero(test.user_degrees)
    ids = np.concatenate([best.ids.numpy() for _, best in rank(scorer, users, 5, [train], pool)])
    assert pool[ids[ids >= 0]].all()
    assert result.metrics["coverage@5"] == pytest.approx(len(np.unique(ids[ids >= 0])) / pool.sum())


def test_groups_sum_to_the_total() -> None:
    scorer, train, test, _ = world(11)
    result = evaluate_ranking(scorer, test, [train], KS, popularity=train.item_degrees)
    assert set(result.groups) == {"popularity", "clicks"}
    for table in result.groups.values():
        assert table["n_targets"].sum() == test.n_pairs
        assert table["n_items"].sum() == 60
        for k in KS:
            assert table[f"share_of_recall@{k}"].sum() == pytest.approx(result.metrics[f"recall@{k}"])
            assert table[f"exposure@{k}"].sum() == pytest.approx(1)


def test_group_recall_by_hand() -> None:
    """Items 0, 1 are unpopular, 2, 3 popular; user 0 finds one of each, user 1 misses an unpopular one."""
    test = Interactions.from_pairs(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]), 2, 4)
    groups = {"halves": popularity_groups(np.array([1, 1, 5, 6]), 2)}
    lists = np.array([[0, 2], [3, -1]])
    table = evaluate_lists(lists, np.array([0, 1]), test, (2,), groups=groups).groups["halves"]
    assert table["share_of_recall@2"].to_list() == pytest.approx([(1 / 3) / 2, (1 / 3) / 2])
    assert table["recall@2"].to_list() == pytest.approx([(0.5 + 0) / 2, 1.0])
    assert table["exposure@2"].to_list() == pytest.approx([1 / 3, 2 / 3])
    assert table["n_targets"].to_list() == [3, 1]


def test_popularity_groups() -> None:
    degrees = np.array([100, 1, 1, 2, 50, 3, 4, 5, 6, 40])
    by_items = popularity_groups(degrees, 5)
    assert np.bincount(by_items.of_item).tolist() == [2] * 5
    assert by_items.of_item[[1, 2]].tolist() == [0, 0]
    assert by_items.of_item[[0, 4]].tolist() == [4, 4]
    by_clicks = popularity_groups(degrees, 2, equal="clicks")
    assert by_clicks.of_item[0] == 1
    assert by_clicks.of_item[[1, 2, 3, 5, 6, 7, 8]].max() == 0
    order = np.argsort(degrees, kind="stable")
    assert (np.diff(by_clicks.of_item[order]) >= 0).all()


def test_click_groups() -> None:
    groups = click_groups(np.array([0, 1, 5, 6, 20, 21, 100, 101]))
    assert groups.of_item.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert groups.labels == ("0", "1-5", "6-20", "21-100", "101+")


def test_gini_and_novelty() -> None:
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.zeros(3, np.int64)) == 0
    test = Interactions.from_pairs(np.array([0]), np.array([0]), 1, 3)
    result = evaluate_lists(np.array([[0, 2]]), np.array([0]), test, (1, 2), popularity=np.array([5, 0, 0]))
    assert result.metrics["novelty@1"] == pytest.approx(-math.log2(6 / 8))
    assert result.metrics["novelty@2"] == pytest.approx((-math.log2(6 / 8) - math.log2(1 / 8)) / 2)
    assert result.metrics["coverage@2"] == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 25))
def test_tied_scores_rank_by_item_row(seed: int, levels: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    train, test = random_log(rng, 6, 25, 0.2), random_log(rng, 6, 25, 0.3)
    if test.n_pairs == 0:
        return
    table = rng.integers(0, levels, (6, 25)).astype(np.float32)
    result = evaluate_ranking(TableScorer(torch.from_numpy(table)), test, [train], (k,))
    for name, values in brute(table, train, test, k).items():
        np.testing.assert_allclose(result.per_user[f"{name}@{k}"].to_numpy(), values, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31))
def test_hit_matrix_against_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    test = random_log(rng, 9, 17, 0.3)
    users = rng.permutation(9)[:5]
    ids = np.stack([rng.permutation(17)[:4] for _ in users])
    ids[rng.random(ids.shape) < 0.2] = -1
    expected = [[i in set(test.row(u)) for i in row] for u, row in zip(users, ids, strict=True)]
    assert hit_matrix(ids, users, test).tolist() == expected


def test_intervals_hold_the_mean_and_repeat() -> None:
    scorer, train, test, _ = world(13)
    first, second = (evaluate_ranking(scorer, test, [train], (10,), seed=4) for _ in range(2))
    for name, (low, high) in first.intervals.items():
        assert low <= first.metrics[name] <= high
    assert first.intervals == second.intervals
    other = evaluate_ranking(scorer, test, [train], (10,), seed=5)
    assert other.intervals != first.intervals
    assert isinstance(first.per_user, pl.DataFrame)


def test_bad_input_is_told() -> None:
    scorer, train, test, _ = world()
    with pytest.raises(InputError, match="no user has a target"):
        evaluate_ranking(scorer, Interactions.empty(40, 60), [train])
    with pytest.raises(InputError, match="the targets have"):
        evaluate_ranking(scorer, Interactions.empty(40, 61), [])
    with pytest.raises(InputError, match="the excluded log has"):
        evaluate_ranking(scorer, test, [Interactions.empty(39, 60)])
    with pytest.raises(InputError, match="cut-offs"):
        evaluate_ranking(scorer, test, [train], (0, 5))
    with pytest.raises(InputError, match="pool"):
        evaluate_ranking(scorer, test, [train], pool=np.ones(59, bool))
    with pytest.raises(InputError, match="popularity"):
        evaluate_ranking(scorer, test, [train], popularity=np.ones(59, int))
    with pytest.raises(InputError, match="inner product"):
        VectorScorer(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="user row"):
        list(rank(scorer, np.array([40]), 3))
    scorer.table[0, 0] = float("nan")
    with pytest.raises(FirstlightError, match="NaN"):
        evaluate_ranking(scorer, test)
