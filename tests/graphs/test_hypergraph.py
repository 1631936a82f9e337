"""Memberships and hypergraph propagation: bounds, limits, and the closed form against a loop (mhcr §10)."""

from __future__ import annotations

import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.graphs.hypergraph import gathered, hyperedge_vectors, memberships, weights_without_own


def logits(rows: int = 6, edges: int = 4) -> torch.Tensor:
    return torch.randn(rows, edges, generator=torch_stream(0, "logits"), dtype=torch.float64)


def test_memberships_are_shares():
    for rng in (None, torch_stream(0, "noise")):
        members = memberships(logits(), 0.5, rng)
        assert bool((members >= 0).all())
        assert torch.allclose(members.sum(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-12)
    shifted = logits() + torch.arange(6)[:, None] * 3
    assert torch.allclose(memberships(shifted, 0.5), memberships(logits(), 0.5), atol=1e-12)
    assert torch.equal(memberships(logits(), 0.5), memberships(logits(), 0.5))


def test_a_cold_temperature_joins_one_hyperedge():
    members = memberships(logits(), 1e-4)
    chosen = torch.nn.functional.one_hot(logits().argmax(dim=1), 4)
    assert torch.allclose(members, chosen.double(), atol=1e-12)
    assert not torch.allclose(memberships(logits(), 0.5), chosen.double(), atol=0.01)


@pytest.mark.parametrize("norm", ["edges", "none"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_closed_form_is_the_loop(layers, norm):
    """Rows send into hyperedges and receive from them, layer by layer (mhcr §2.5)."""
    members = memberships(logits(9), 0.5)
    start = torch.randn(9, 5, generator=torch_stream(1, "start"), dtype=torch.float64)
    rows = start
    for _ in range(layers):
        held = torch.zeros(4, 5, dtype=torch.float64)
        for edge in range(4):
            held[edge] = sum(members[row, edge] * rows[row] for row in range(9))
            if norm == "edges":
                held[edge] /= members[:, edge].sum()
        rows = torch.stack([sum(members[row, e] * held[e] for e in range(4)) for row in range(9)])
    found = hyperedge_vectors(members, start, layers, norm)
    assert torch.allclose(found, held, rtol=1e-12)
    assert torch.allclose(members @ found, rows, rtol=1e-12)


@pytest.mark.parametrize("norm", ["edges", "none"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_without_its_own_row_a_hypergraph_is_that_of_the_others(layers, norm):
    """What is taken away again, against a hypergraph that the row never sent into."""
    rng = torch_stream(0, "members")
    members = memberships(torch.randn(9, 4, generator=rng, dtype=torch.float64), 0.5)
    start = torch.randn(9, 5, generator=rng, dtype=torch.float64)
    sums = gathered(members, start)
    weights = weights_without_own(members, members, sums, layers, norm)
    for row in range(9):
        others = members * (torch.arange(9) != row)[:, None]
        expected = members[row] @ hyperedge_vectors(others, start, layers, norm)
        found = weights[row] @ sums.start - (weights[row] @ members[row]) * start[row]
        assert torch.allclose(found, expected, atol=1e-12)
    # A hyperedge with one member is empty without it.
    lonely = torch.eye(3, dtype=torch.float64)
    held = gathered(lonely, start[:3])
    assert torch.equal(weights_without_own(lonely, lonely, held, 1, "edges"), torch.zeros(3, 3).double())
