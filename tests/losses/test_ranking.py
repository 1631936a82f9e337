"""Losses and their gradients against float64 double loops, and the identities of the specs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.logsumexp import score_log_sum_exp
from firstlight.losses.negatives import PairNegatives, SharedNegatives
from firstlight.losses.ranking import LossConfig, ranking_loss

D = torch.float64


def tensors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def by_loops(config, users, positive, lists, w_pos, w_neg):
    """Each row's loss, one exponential at a time."""
    losses = []
    for b in range(len(users)):
        scores = [torch.dot(users[b], n) for n in lists[b]]
        if config.name == "bpr":
            terms = [torch.log1p(torch.exp(w_neg[b] * (s - positive[b]))) for s in scores]
            losses.append(sum(terms) / len(terms))
            continue
        total = sum(torch.exp(w_neg[b] * s) for s in scores)
        if config.positive_in_denominator:
            total = total + torch.exp(w_neg[b] * positive[b])
        weight = config.negative_weight if config.name == "bsl" else 1
        losses.append(weight * torch.log(total) - w_pos[b] * positive[b])
    return torch.stack(losses)


CONFIGS = [
    LossConfig(name="bpr"),
    LossConfig(name="softmax"),
    LossConfig(name="softmax", positive_in_denominator=True),
    LossConfig(name="bsl", negative_weight=1.22),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", ["shared", "excluded", "pairs"])
def test_loss_and_gradient_equal_double_loops(config, kind):
    users, items, positive_vectors = tensors(5, 3), tensors(11, 3, seed=1), tensors(5, 3, seed=2)
    w_pos, w_neg = tensors(5, seed=3).exp().detach(), tensors(5, seed=4).exp().detach()
    for leaf in (users, items, positive_vectors, w_pos, w_neg):
        leaf.requires_grad_()
    if kind == "pairs":
        index = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(5))
        negatives = PairNegatives(items, index)
        lists = [[items[j] for j in row] for row in index.tolist()]
    elif kind == "excluded":
        rows, columns = torch.tensor([0, 0, 3]), torch.tensor([2, 10, 5])
        negatives = SharedNegatives(items, exclude=(rows, columns))
        gone = set(zip(rows.tolist(), columns.tolist(), strict=True))
        lists = [[items[j] for j in range(11) if (b, j) not in gone] for b in range(5)]
    else:
        negatives = SharedNegatives(items)
        lists = [list(items)] * 5
    positive = (users * positive_vectors).sum(1)
    ours = ranking_loss(config, users, positive, negatives, w_pos, w_neg).per_row
    theirs = by_loops(config, users, (users * positive_vectors).sum(1), lists, w_pos, w_neg)
    assert torch.allclose(ours, theirs, rtol=1e-11)
    upstream = tensors(5, seed=6)
    leaves = [users, items, positive_vectors, w_neg]
    got = torch.autograd.grad(ours @ upstream, leaves, retain_graph=True)
    expected = torch.autograd.grad(theirs @ upstream, leaves)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 9), st.integers(1, 80), st.booleans())
def test_tiles_change_nothing(rows, keys, dim, tile, shifted):
    q, k = tensors(rows, dim).requires_grad_(), tensors(keys, dim, seed=1).requires_grad_()
    offset = tensors(keys, seed=2) if shifted else None
    unit = torch.full((rows,), 0.3, dtype=D)
    whole = score_log_sum_exp(q, k, offset=offset, unit=unit)
    tiled = score_log_sum_exp(q, k, offset=offset, unit=unit, tile=tile)
    scores = q @ k.T
    shift = 0 if offset is None else offset
    assert torch.allclose(whole[0], torch.logsumexp(scores + shift, 1))
    assert torch.allclose(whole[1], torch.logsumexp(0.3 * scores + shift, 1))
    for a, b in zip(whole, tiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    gradients = [torch.autograd.grad(lse.sum(), (q, k)) for lse in (whole[0], tiled[0])]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tile", [10**6, 4])
def test_a_row_without_negatives_has_no_gradient(tile):
    q, k = tensors(2, 3).requires_grad_(), tensors(4, 3, seed=1).requires_grad_()
    exclude = (torch.zeros(4, dtype=torch.int64), torch.arange(4))
    lse, _ = score_log_sum_exp(q, k, exclude=exclude, tile=tile)
    assert lse[0] == -math.inf
    gradient = torch.autograd.grad(lse[1] + lse[0].nan_to_num(neginf=0.0), (q, k))
    assert bool((gradient[0][0] == 0).all())
    assert all(bool(g.isfinite().all()) for g in gradient)


@pytest.mark.parametrize("tau", [1e-4, 1e-2, 1.0, 1e3])
def test_float32_is_stable_at_any_temperature(tau):
    users = torch.nn.functional.normalize(tensors(8, 16), dim=1).float().requires_grad_()
    items = torch.nn.functional.normalize(tensors(50, 16, seed=1), dim=1).float().requires_grad_()
    w = torch.full((8,), 1 / tau)
    loss = ranking_loss(LossConfig(), users, (users * items[:8]).sum(1), SharedNegatives(items), w, w).per_row
    exact = w.double()[:, None] * (users @ items.T).double()
    expected = torch.logsumexp(exact, 1) - w.double() * (users * items[:8]).sum(1).double()
    assert torch.allclose(loss.double(), expected, rtol=1e-5, atol=4e-7 / tau + 1e-5)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss.sum(), (users, items)))


def scored(positive: float, negatives: list[float], config: LossConfig, w_pos: float, w_neg: float) -> float:
    """Loss of one user [1, 0] whose scores are given."""
    user = torch.tensor([[1.0, 0.0]], dtype=D)
    items = torch.tensor([[s, 0.0] for s in negatives], dtype=D)
    at = lambda value: torch.tensor([value], dtype=D)  # noqa: E731
    return float(
        ranking_loss(config, user, at(positive), SharedNegatives(items), at(w_pos), at(w_neg)).per_row
    )


def test_known_answers_of_bsl():
    """Rivals C1: s⁺ = .6, s⁻ = [.5, .1, −.2], t₁ = .1."""
    others = [0.5, 0.1, -0.2]
    assert scored(0.6, others, LossConfig(name="softmax"), 10, 10) == pytest.approx(-0.98095499, abs=1e-8)
    assert scored(0.6, others, LossConfig(name="bsl", negative_weight=1.22), 10, 10) == pytest.approx(
        0.12323491, abs=1e-8
    )


def test_with_and_without_the_positive_below():
    """Specs §9.6: f₊ = .8, 1,023 zeros, w = 9.18."""
    inside = LossConfig(positive_in_denominator=True)
    assert scored(0.8, [0.0] * 1023, inside, 9.18, 9.18) == pytest.approx(0.50762, abs=1e-5)
    assert scored(0.8, [0.0] * 1023, LossConfig(), 9.18, 9.18) == pytest.approx(-0.41351, abs=1e-5)


@pytest.mark.parametrize(("w_user", "change"), [(7, -0.2), (9, 0.0), (12, 0.3), (20, 1.1)])
def test_released_form_pushes_by_the_difference_of_temperatures(w_user, change):
    """Specs §9.7: w₀ = 9; adding .1 to all scores changes the loss by .1·(w_u − w₀)."""
    others = [0.3, -0.1, 0.2, 0.0]
    before = scored(0.5, others, LossConfig(), 9, w_user)
    after = scored(0.6, [s + 0.1 for s in others], LossConfig(), 9, w_user)
    assert after - before == pytest.approx(change, abs=1e-9)


def test_gradient_sums_are_the_temperatures():
    user = torch.tensor([[1.0]], dtype=D)
    positive = torch.tensor([0.4], dtype=D, requires_grad=True)
    items = tensors(30, 1).requires_grad_()
    w = torch.tensor([9.0], dtype=D), torch.tensor([12.0], dtype=D)
    loss = ranking_loss(LossConfig(), user, positive, SharedNegatives(items), *w).per_row.sum()
    pull, push = torch.autograd.grad(loss, (positive, items))
    assert float(pull) == pytest.approx(-9)
    assert float(push.sum()) == pytest.approx(12)


def test_temperature_goes_from_mean_to_maximum():
    """Specs §9.9: (LSE(wz) − log M)/w tends to mean(z) at w → 0 and to max(z) at w → ∞."""
    z = 0.2 * tensors(1000)
    one = torch.ones(1, 1, dtype=D)
    soft = lambda w: float((score_log_sum_exp(one * w, z[:, None])[0] - math.log(1000)) / w)  # noqa: E731
    assert soft(1e-3) == pytest.approx(float(z.mean()), abs=1e-4)
    assert soft(1e4) == pytest.approx(float(z.max()), abs=2e-3)


def test_start_loss_of_random_unit_vectors():
    """Specs §9.10: log S + w²/128 at 64 dimensions, and L(u) = log S + 1/128."""
    unit = torch.nn.functional.normalize
    users, items = unit(tensors(512, 64), dim=1), unit(tensors(2048, 64, seed=1), dim=1)
    w = torch.full((512,), 9.179424, dtype=D)
    result = ranking_loss(
        LossConfig(), users, torch.zeros(512, dtype=D), SharedNegatives(items), w, w, observe=True
    )
    assert float(result.per_row.mean()) == pytest.approx(8.283, abs=0.02)
    assert float(result.at_tau_one.mean()) == pytest.approx(7.632, abs=0.003)


def test_gradient_of_the_log_softmax():
    """Specs §9.11: d/df = (y_i − |P| p_i)·w for the summed full-softmax loss of one user."""
    items = tensors(12, 4)
    user = tensors(1, 4, seed=1)
    scores = (user @ items.T)[0].requires_grad_()
    w, positives = 3.0, [1, 4, 7]
    loss = sum(torch.logsumexp(w * scores, 0) - w * scores[i] for i in positives)
    expected = w * (len(positives) * torch.softmax(w * scores, 0)).detach()
    expected[positives] -= w
    assert torch.allclose(torch.autograd.grad(loss, scores)[0], expected, atol=1e-14)
    users = user.requires_grad_()
    ours = ranking_loss(
        LossConfig(), users, (users @ items[positives].mean(0)).reshape(1), SharedNegatives(items),
        torch.tensor([w], dtype=D), torch.tensor([w], dtype=D),
    ).per_row.sum() * 3  # fmt: skip
    assert torch.allclose(torch.autograd.grad(ours, users)[0][0], expected @ items, atol=1e-12)
