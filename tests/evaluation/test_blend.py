"""Blends of scorers: what the weights and the standardisation may and may not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import FirstlightError, InputError
from firstlight.data.interactions import Interactions
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.evaluation.scorer import BlendScorer, Scorer, VectorScorer, rank

SHAPE = (7, 23)
EVERYBODY = torch.arange(SHAPE[0])


class TableScorer:
    """A scorer without vectors, which counts what it is asked for."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.n_users, self.n_items = table.shape
        self.asked: list[int] = []

    def vectors(self) -> None:
        return None

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(users))
        return self.table[users]


def table(seed: int, spread: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * spread + shift


def z(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)


def vector_scorer(seed: int) -> VectorScorer:
    rng = torch.Generator().manual_seed(seed)
    return VectorScorer(torch.randn(SHAPE[0], 4, generator=rng), 3 + torch.randn(SHAPE[1], 4, generator=rng))


def test_against_the_definition_for_both_kinds_of_scorers():
    vectors, plain = vector_scorer(0), TableScorer(table(1, 50, -7))
    users = torch.tensor([5, 0, 5])
    found = BlendScorer([vectors, plain], [0.3, 0.7]).scores(users).numpy()
    queries, keys = (side.numpy() for side in vectors.vectors())
    expected = 0.3 * z(queries @ keys.T) + 0.7 * z(plain.table.numpy())
    assert found == pytest.approx(expected[users.numpy()], abs=1e-5)
    assert found.dtype == np.float32


def test_without_standardisation_it_is_the_plain_sum():
    a, b = table(0), table(1, 9)
    blend = BlendScorer([TableScorer(a), TableScorer(b)], [2, -0.5], standardise=False)
    assert torch.allclose(blend.scores(EVERYBODY), 2 * a - 0.5 * b, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    spread=st.floats(0.01, 1e3),
    shift=st.floats(-100, 100),
    weights=st.lists(st.floats(0, 3), min_size=2, max_size=2),
)
def test_scale_and_offset_of_a_scorer_do_not_matter(seed, spread, shift, weights):
    first, second = TableScorer(table(seed)), table(seed + 1000)
    plain = BlendScorer([first, TableScorer(second)], weights).scores(EVERYBODY)
    moved = BlendScorer([first, TableScorer(second * spread + shift * spread)], weights).scores(EVERYBODY)
    assert torch.allclose(plain, moved, atol=2e-3)  # a shift of 100 spreads costs three digits


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), weight=st.floats(0.01, 100))
def test_one_scorer_alone_keeps_its_order(seed, weight):
    scorer = TableScorer(table(seed))
    blend = BlendScorer([scorer, TableScorer(table(seed + 1))], [weight, 0])
    users = np.arange(SHAPE[0])
    for (_, a), (_, b) in zip(rank(blend, users, 23), rank(scorer, users, 23), strict=True):
        assert torch.equal(a.ids, b.ids)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(3)))
def test_the_order_of_the_parts_does_not_matter(seed, order):
    parts: list[Scorer] = [TableScorer(table(seed)), vector_scorer(seed), TableScorer(table(seed + 1))]
    weights = [0.2, 0.3, 0.5]
    plain = BlendScorer(parts, weights).scores(EVERYBODY)
    turned = BlendScorer([parts[i] for i in order], [weights[i] for i in order]).scores(EVERYBODY)
    assert torch.allclose(plain, turned, atol=1e-5)


def test_a_blend_of_blends_is_the_blend():
    parts = [TableScorer(table(0)), TableScorer(table(1, 30))]
    standard = [BlendScorer([part], [1]) for part in parts]
    nested = BlendScorer(standard, [0.25, 0.75], standardise=False)
    assert torch.allclose(
        nested.scores(EVERYBODY), BlendScorer(parts, [0.25, 0.75]).scores(EVERYBODY), atol=1e-6
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_a_row_without_differences_says_nothing(value):
    """0.1 is no float32: the mean of many is a little off, and must not be blown up to noise."""
    flat = torch.full((7, 40_981), value)
    blend = BlendScorer([TableScorer(flat)], [1])
    assert bool((blend.scores(EVERYBODY) == 0).all())


def test_a_shared_table_is_not_written_to():
    """Popularity gives one row, expanded; a blend must leave it alone."""
    row = torch.arange(23.0)
    BlendScorer([TableScorer(row.expand(7, -1))], [1]).scores(EVERYBODY)
    assert torch.equal(row, torch.arange(23.0))


def test_it_is_ranked_block_by_block():
    part = TableScorer(table(0))
    targets = Interactions.from_pairs(np.arange(7), np.arange(7), *SHAPE)
    whole = evaluate_ranking(BlendScorer([part, vector_scorer(0)], [1, 1]), targets, ks=(5,))
    part.asked.clear()
    blocks = evaluate_ranking(BlendScorer([part, vector_scorer(0)], [1, 1]), targets, ks=(5,), block=3)
    assert part.asked == [3, 3, 1]
    assert whole.metrics == blocks.metrics


def test_scores_that_are_not_finite_are_refused_when_ranked():
    broken = table(0)
    broken[2, 3] = float("inf")
    with pytest.raises(FirstlightError, match="NaN"):
        list(rank(BlendScorer([TableScorer(broken)], [1]), np.arange(7), 5))


@pytest.mark.parametrize("weights", [[], [1], [1, 2, 3], [1, float("nan")], [float("inf"), 1]])
def test_weights_must_fit(weights):
    with pytest.raises(InputError, match="finite weight for each"):
        BlendScorer([TableScorer(table(0))] * 2, weights)


def test_other_shapes_and_nothing_are_refused():
    with pytest.raises(InputError, match="different users or items"):
        BlendScorer([TableScorer(table(0)), TableScorer(table(0).T)], [1, 1])
    with pytest.raises(InputError, match="finite weight for each"):
        BlendScorer([], [])
