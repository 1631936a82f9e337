"""The normalised click graph: its matrix, its bounds, and what comes back to an item."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.graphs.propagation import BipartitePropagation
from worlds import random_log


def hop_and_matrix(n_users: int = 7, n_items: int = 9) -> tuple[BipartitePropagation, torch.Tensor]:
    """A click graph whose last user and last item have no click, and Â of the papers, dense."""
    log = random_log(n_users - 1, n_items - 1, 14)
    indptr = np.r_[log.indptr, log.indptr[-1]]
    hop = BipartitePropagation(indptr, log.items, n_items, dtype=torch.float64)
    both = torch.eye(n_users + n_items, dtype=torch.float64)
    users, items = hop(both[:n_users], both[n_users:])
    return hop, torch.cat([users, items])


def test_the_adjacency_is_symmetric_and_does_not_grow():
    """Property 2 of mhcr §10: both stored halves are one matrix, of spectral radius one at most."""
    hop, matrix = hop_and_matrix()
    assert torch.allclose(matrix, matrix.T, atol=1e-15)
    assert float(torch.linalg.eigvalsh(matrix).abs().max()) <= 1 + 1e-12
    assert not matrix[6].any()
    assert not matrix[-1].any()
    block = hop.users_from(torch.eye(9, dtype=torch.float64))
    assert torch.equal(matrix[:7, 7:], block)
    clicks = block > 0
    degrees = clicks.sum(1).clamp(min=1)[:, None] * clicks.sum(0).clamp(min=1)
    assert torch.allclose(block, clicks / degrees.double() ** 0.5, atol=1e-15)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_what_comes_back_to_an_item(hops, monkeypatch):
    hop, matrix = hop_and_matrix()
    block = matrix[:7, 7:]
    power = sum(torch.linalg.matrix_power(block.T @ block, h) for h in range(hops + 1))
    assert torch.allclose(hop.items_by_items(torch.eye(9, dtype=torch.float64), hops), power, atol=1e-12)
    monkeypatch.setattr("firstlight.graphs.propagation._COLUMNS", 4)
    assert torch.allclose(hop.item_returns(hops), power.diagonal(), atol=1e-12)
