"""Nearest-neighbour alignment against plain loops in double precision (specs: mim-refiner §9, 9 to 15)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from firstlight.core.seeds import torch_stream
from firstlight.losses.neighbour import neighbour_alignment, view_pairs

VIEWS, BATCH, DIM, TAU = 5, 4, 3, 0.2


def rows(*shape: int, name: str) -> Tensor:
    return torch.randn(*shape, generator=torch_stream(0, name), dtype=torch.float64)


@pytest.fixture
def p() -> Tensor:
    return rows(VIEWS, BATCH, DIM, name="p").requires_grad_()


@pytest.fixture
def t() -> Tensor:
    return rows(2, BATCH, DIM, name="t")


@pytest.fixture
def n() -> Tensor:
    return rows(2, BATCH, DIM, name="n")


def pairs(mode: str, views: int) -> Iterator[tuple[int, int]]:
    """The terms as the specification lists them: 2 global-global, then each teacher with each local index."""
    yield from ((0, 1), (1, 0))
    for teacher in (0, 1):
        for local in range(views - 2):
            yield teacher, local + 2 if mode == "paper" else local


def by_loops(p: Tensor, t: Tensor, n: Tensor, tau: float, swap: str, mode: str) -> float:
    def cosine(x: Tensor, y: Tensor) -> float:
        dot = sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
        return dot / math.sqrt(sum(float(a) ** 2 for a in x) * sum(float(b) ** 2 for b in y))

    terms = []
    for i, j in pairs(mode, len(p)):
        losses = []
        for a in range(p.shape[1]):
            logits = []
            for b in range(p.shape[1]):
                swapped = swap == "all" or (swap == "positive" and a == b)
                logits.append(cosine(n[i, a] if swapped else t[i, a], p[j, b]) / tau)
            losses.append(math.log(sum(math.exp(x) for x in logits)) - logits[a])
        terms.append(sum(losses) / len(losses))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("swap", ["positive", "all", "none"])
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_equals_the_loops_in_value_and_gradient(p, t, n, swap, mode):
    def loss(p: Tensor) -> Tensor:
        return neighbour_alignment(p, t, n, TAU, swap=swap, mode=mode)

    assert float(loss(p.detach())) == pytest.approx(by_loops(p.detach(), t, n, TAU, swap, mode), abs=1e-12)
    assert torch.autograd.gradcheck(loss, p)


def test_pairs_of_the_recipe():
    """Property 13: 2 global and 10 local crops."""
    paper, released = view_pairs(2, 12, "paper") * 22, view_pairs(2, 12, "released") * 22
    assert torch.allclose(paper, torch.ones(2, 12, dtype=torch.float64) - torch.eye(2, 12))
    expected = torch.ones(2, 12, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 2
    expected[:, 10:] = 0
    assert torch.allclose(released, expected)


def test_last_local_views_count_only_in_paper_mode(p, t, n):
    with torch.no_grad():
        before = {mode: float(neighbour_alignment(p, t, n, TAU, mode=mode)) for mode in ("paper", "released")}
        p[-2:] = rows(2, BATCH, DIM, name="other")
        assert float(neighbour_alignment(p, t, n, TAU, mode="released")) == before["released"]
        assert float(neighbour_alignment(p, t, n, TAU)) != before["paper"]
        p[2] = rows(BATCH, DIM, name="first local")
        assert float(neighbour_alignment(p, t, n, TAU, mode="released")) != before["released"]


def test_only_the_positive_is_swapped():
    """Property 9, on one image pair whose logits can be read off the gradient-free loss."""
    e = torch.eye(2, dtype=torch.float64)
    p = torch.stack([e, e])  # both views of image a predict unit vector a
    t, n = (
        torch.stack([e, e]),
        torch.stack([e.flip(0), e.flip(0)]),
    )  # each neighbour is the other image's vector
    # logit(a, a) = n_a·p_a / τ = 0, logit(a, b) = t_a·p_b / τ = 0: nothing to tell the images apart.
    assert float(neighbour_alignment(p, t, n, TAU)) == pytest.approx(math.log(2))
    # The whole row swapped: logit(a, b) = n_a·p_b / τ = 1/τ, all for the wrong image.
    wrong = math.log(1 + math.exp(1 / TAU))
    assert float(neighbour_alignment(p, t, n, TAU, swap="all")) == pytest.approx(wrong)
    right = math.log(1 + math.exp(-1 / TAU))
    assert float(neighbour_alignment(p, t, n, TAU, swap="none")) == pytest.approx(right)


def test_without_a_swap_all_forms_are_one(p, t):
    """Property 10."""
    values = {float(neighbour_alignment(p, t, t, TAU, swap=s).detach()) for s in ("positive", "all", "none")}
    assert max(values) - min(values) < 1e-12


def test_gradient_reaches_predictions_alone(p, t, n):
    """Property 11."""
    t.requires_grad_()
    n.requires_grad_()
    neighbour_alignment(p, t, n, TAU).backward()
    assert t.grad is None
    assert n.grad is None
    assert (p.grad.abs().sum(dim=(1, 2)) > 0).all()


def test_invariances(p, t, n):
    """Properties 11 and 12: lengths, the order of images, and which global crop is called the first."""
    value = float(neighbour_alignment(p, t, n, TAU))
    scale = rows(VIEWS, BATCH, 1, name="scale").abs() + 0.5
    assert float(neighbour_alignment(p * scale, t * 3, n * 7, TAU)) == pytest.approx(value, abs=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    assert float(neighbour_alignment(p[:, order], t[:, order], n[:, order], TAU)) == pytest.approx(value)
    swapped = p[torch.tensor([1, 0, 2, 3, 4])]
    assert float(neighbour_alignment(swapped, t.flip(0), n.flip(0), TAU)) == pytest.approx(value)


def test_bounds():
    """Property 12: log B where nothing tells images apart; 0 where everything does."""
    same = torch.ones(VIEWS, 8, DIM)
    assert float(neighbour_alignment(same, same[:2], same[:2], TAU)) == pytest.approx(math.log(8), abs=1e-6)
    corners = torch.cat([torch.eye(4), -torch.eye(4)]).expand(VIEWS, 8, 4)
    assert float(neighbour_alignment(corners, corners[:2], corners[:2], 0.02)) == pytest.approx(0, abs=1e-6)


def test_temperature_scales_the_gradient_near_zero_logits(p, t, n):
    """Property 14: with near-equal logits the softmax hardly changes, so the gradient goes with 1 / τ."""
    grads = [torch.autograd.grad(neighbour_alignment(p, t, n, tau), p)[0].norm() for tau in (1000.0, 2000.0)]
    assert float(grads[0] / grads[1]) == pytest.approx(2, rel=1e-2)


def test_half_precision_loses_nothing_but_the_inputs(p, t, n):
    half = p.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = float(neighbour_alignment(half, t.float(), n.float(), TAU))
    assert value == pytest.approx(by_loops(half.double(), t, n, TAU, "positive", "paper"), abs=1e-5)
