"""Graph filters against dense linear algebra and answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import firstlight.models.graph_filter as module
from firstlight.core.seeds import torch_stream
from firstlight.data.interactions import Interactions
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.models.graph_filter import GraphFilter, GraphFilterConfig, right_singular_vectors
from firstlight.training.config import build_config
from firstlight.training.run_folder import ModelScorer
from worlds import checkerboard, random_log

YELP = {"kind": "bspm", "beta": 0.3, "time": 1.2, "solver": "euler", "output": "mean"}
KINDS = [
    {"kind": "gf-cf"},
    {"kind": "gf-cf", "beta": 0},
    {"kind": "bspm"},
    {"kind": "bspm", "merge": "lm"},
    {"kind": "bspm", "beta": 0, "time": 2.2, "steps": 2, "merge": "lm"},
    {"kind": "bspm", "solver": "euler", "steps": 3, "output": "mean"},
    YELP,
]


def build(log: Interactions, dtype: torch.dtype = torch.float64, **fields) -> GraphFilter:
    return GraphFilter(GraphFilterConfig(**fields), log, torch_stream(0, "init"), dtype=dtype)


def all_scores(model: GraphFilter) -> np.ndarray:
    return model.scores(torch.arange(model.n_users)).numpy()


def root(degrees: np.ndarray) -> np.ndarray:
    return np.where(degrees > 0, np.maximum(degrees, 1) ** -0.5, 0)


def clicks_of(log: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """R and R̃, dense."""
    clicks = np.zeros((log.n_users, log.n_items))
    clicks[log.users, log.items] = 1
    return clicks, root(clicks.sum(1))[:, None] * clicks * root(clicks.sum(0))


def dense(log: Interactions, config: GraphFilterConfig) -> np.ndarray:
    """The formulas with every matrix written out."""
    clicks, normal = clicks_of(log)
    product = normal.T @ normal
    vectors = np.linalg.svd(normal, full_matrices=False)[2][: config.rank].T
    degrees = clicks.sum(0)
    ideal = config.beta * clicks @ np.diag(root(degrees)) @ vectors @ vectors.T @ np.diag(degrees**0.5)
    blurred = clicks @ product
    if config.kind == "gf-cf":
        return blurred + ideal
    state, width, states = blurred + (config.merge == "em") * ideal, config.time / config.steps, []
    for _ in range(config.steps):
        slope = lambda r: -r @ product  # noqa: E731
        if config.solver == "euler":
            state = state + width * slope(state)
        else:  # the textbook's four stages
            one = slope(state)
            two = slope(state + width / 2 * one)
            three = slope(state + width / 2 * two)
            four = slope(state + width * three)
            state = state + width / 6 * (one + 2 * two + 2 * three + four)
        states.append(state)
    found = state if config.output == "last" else np.mean([blurred, *states], axis=0)
    return found + (config.merge == "lm") * ideal


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [[1.05355339, 1.50355339, 0], [0.45355339, 0.95, 0]]),
        ({"kind": "bspm"}, [[0.63858526, 0.88945603, 0], [0.28780994, 0.56195111, 0]]),
        (YELP, [[0.31853553, 0.40346194, 0]]),
    ],
)
def test_answers_known_by_hand(fields, expected):
    """Users 0 and 1, items 0, 1 and a cold one; one singular vector."""
    log = Interactions.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3)
    found = all_scores(build(log, rank=1, **fields))
    assert found[: len(expected)] == pytest.approx(np.array(expected), abs=1e-7)


@pytest.mark.parametrize("fields", KINDS)
def test_against_dense_matrices(fields):
    """More users than one block, repeated degrees, both precisions."""
    log = random_log(150, 40, 500)
    config = GraphFilterConfig(rank=5, **fields)
    expected = dense(log, config)
    assert all_scores(build(log, rank=5, **fields)) == pytest.approx(expected, abs=1e-9)
    single = all_scores(build(log, torch.float32, rank=5, **fields))
    assert single.dtype == np.float32
    assert single == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("fields", KINDS)
def test_users_and_items_without_clicks_score_exactly_zero(fields):
    log = random_log(30, 20, 90)
    padded = Interactions(np.r_[0, log.indptr, log.indptr[-1]], log.items + 1, 22)
    scores = all_scores(build(padded, torch.float32, **fields))
    assert not scores[[0, -1]].any()
    assert not scores[:, [0, -1]].any()
    assert scores[1:-1, 1:-1].any(axis=1).all()


def test_a_log_without_clicks():
    empty = Interactions.from_pairs(np.array([], np.int64), np.array([], np.int64), 4, 5)
    assert not all_scores(build(empty, kind="bspm")).any()


def test_no_users_asked():
    assert build(random_log(5, 6, 10)).scores(torch.arange(0)).shape == (0, 6)


@pytest.mark.parametrize(
    ("shape", "pairs", "rank"), [((300, 200), 3000, 8), ((250, 900), 5000, 40), ((900, 250), 3000, 20)]
)
def test_singular_subspace_against_lapack(shape, pairs, rank):
    """Neighbouring singular values differ in the third digit here, as in real logs."""
    log = random_log(*shape, pairs)
    found = right_singular_vectors(log, rank, torch_stream(0, "init")).numpy()
    _, values, right = np.linalg.svd(clicks_of(log)[1], full_matrices=False)
    assert values[rank - 1] / values[rank] < 1.01
    assert found.T @ found == pytest.approx(np.eye(rank), abs=1e-12)
    assert np.abs(found @ found.T - right[:rank].T @ right[:rank]).max() < 1e-4
    lengths = np.linalg.norm(clicks_of(log)[1] @ found, axis=0)
    assert lengths == pytest.approx(values[:rank], abs=1e-6)  # in order, the largest first


@pytest.mark.parametrize("shape", [(40, 3000), (3000, 40)])
def test_a_short_side_is_decomposed_without_users_times_items(shape, monkeypatch):
    """By the Gram matrix of the short side: the formulas' answer, and no table of users × items on the way."""
    log = random_log(*shape, 4000)
    largest = 0
    for name in ("zeros", "empty"):
        made = getattr(torch, name)

        def counted(*sizes, made=made, **kwargs):
            nonlocal largest
            table = made(*sizes, **kwargs)
            largest = max(largest, table.numel())
            return table

        monkeypatch.setattr(torch, name, counted)
    found = right_singular_vectors(log, 30, torch_stream(0, "init")).numpy()
    monkeypatch.undo()
    assert largest <= shape[1] * 30 + 40 * 40
    assert largest < shape[0] * shape[1]
    assert found.T @ found == pytest.approx(np.eye(30), abs=1e-10)
    config = GraphFilterConfig(kind="bspm", rank=30)
    assert all_scores(build(log, kind="bspm", rank=30)) == pytest.approx(dense(log, config), abs=1e-9)


def test_a_short_side_with_fewer_directions_than_rows():
    """Users who click alike: their directions that only rounding gives have no part in a score."""
    kinds = random_log(6, 200, 120)
    rows = [kinds.row(kind) for kind in range(6) for _ in range(4)]
    log = Interactions(np.r_[0, np.cumsum([len(row) for row in rows])], np.concatenate(rows), 200)
    config = GraphFilterConfig(kind="gf-cf", rank=24)
    assert all_scores(build(log, rank=24)) == pytest.approx(dense(log, config), abs=1e-9)


@pytest.mark.parametrize("copies", [1, 30])
def test_fewer_directions_than_vectors(copies):
    """Rank 6 however many rows: the spectrum ends inside the block, and the rest may not disturb it."""
    kinds = random_log(6, 200, 120)
    rows = [kinds.row(kind) for kind in range(6) for _ in range(copies)]
    indptr = np.r_[0, np.cumsum([len(row) for row in rows])]
    log = Interactions(indptr, np.concatenate(rows), 200)
    config = GraphFilterConfig(kind="gf-cf", rank=20)
    assert all_scores(build(log, rank=20)) == pytest.approx(dense(log, config), abs=1e-8)


def test_two_communities_are_told_apart():
    data = checkerboard()
    for fields in ({"kind": "gf-cf"}, {"kind": "bspm"}):
        scorer = ModelScorer(build(data.train, torch.float32, rank=2, **fields))
        assert evaluate_ranking(scorer, data.test, [data.train], ks=(1,)).metrics["recall@1"] == 1.0


def test_reading_back_does_not_decompose_again(monkeypatch):
    log = random_log(30, 20, 90)
    config = GraphFilterConfig(kind="bspm", rank=4)
    model = GraphFilter(config, log, torch_stream(0, "init"))
    expected = all_scores(model)

    def refuse(*_: object) -> None:
        raise AssertionError("decomposed again")

    monkeypatch.setattr(module, "right_singular_vectors", refuse)
    again = GraphFilter.from_state(config, log, model.state_dict())
    assert np.array_equal(all_scores(again), expected)
    # Without the ideal term there is nothing to decompose at all.
    assert not GraphFilter(GraphFilterConfig(beta=0), log).state_dict()["singular"].numel()


def test_published_values_stand_unless_told_otherwise():
    filled = {
        kind: build_config(model="graph-filter", overrides=[f"model.kind={kind}"]).model
        for kind in module.PUBLISHED
    }
    assert (filled["gf-cf"].rank, filled["gf-cf"].beta) == (256, 0.3)
    assert (filled["bspm"].rank, filled["bspm"].beta) == (448, 0.2)
    assert (filled["bspm"].time, filled["bspm"].solver, filled["bspm"].steps) == (2.5, "rk4", 1)
    assert GraphFilterConfig(kind="bspm", rank=9).rank == 9
    with pytest.raises(ValueError, match="kind"):
        GraphFilterConfig(kind="other")
