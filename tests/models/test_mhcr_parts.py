"""Gates, attention and fusion of MHCR (mhcr §10, property 4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from firstlight.core.seeds import torch_stream
from firstlight.models.mhcr_parts import Attention, Gate, NormGate, fused


def rows(n: int = 6, dim: int = 3, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, dim, generator=torch_stream(seed, "rows"))


@pytest.mark.parametrize("kind", [Gate, NormGate])
@pytest.mark.parametrize("training", [True, False])
def test_gates_open_between_zero_and_one(kind, training):
    opened = kind(3, torch_stream(0, "gate"))(rows(), training)
    assert opened.shape == (6, 3)
    assert bool(((opened > 0) & (opened < 1)).all())


def closed(clicks: Tensor, training: bool) -> Tensor:
    """A gate that lets nothing pass: what is left of the content side is the common part."""
    return torch.zeros_like(clicks)


@pytest.mark.parametrize("normed", [True, False])
def test_attention_shares_sum_to_one_over_the_views_that_are_there(normed):
    attention = Attention(3, normed, torch_stream(0, "attention"))
    nodes = [torch.eye(3)[m].expand(6, 3) for m in range(3)]  # a common part then shows its shares
    present = torch.ones(6, 3, dtype=torch.bool)
    present[0, 1] = present[1, :2] = False
    common = fused(nodes, rows(), present, attention, closed) * (present.sum(1, keepdim=True) + 1)
    assert torch.allclose(common.sum(dim=1), torch.ones(6), atol=1e-6)
    assert bool((common >= 0).all())
    assert bool((common[~present] == 0).all())
    assert torch.equal(common[1], torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_views_that_agree_have_nothing_specific(views, shared):
    """If all E_m are equal, E_com is E_m, every specific part is zero, and E_side = E_m/(M + 1)."""
    rng = torch_stream(0, "parts")
    gate = NormGate(3, rng) if shared else Gate(3, rng)
    node = rows(seed=1)
    present = torch.ones(6, views, dtype=torch.bool)
    found = fused([node] * views, rows(), present, Attention(3, shared, rng), gate, training=True)
    assert torch.allclose(found, node / (views + 1), atol=1e-6)
