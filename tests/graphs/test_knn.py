"""Neighbour lists: exact against a double loop, and how near inverted lists come to them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from firstlight.core.errors import MissingExtraError
from firstlight.core.extras import installed
from firstlight.graphs import knn
from firstlight.graphs.ann import PAYS_FROM, candidates
from firstlight.graphs.knn import (
    Neighbours,
    chosen_method,
    item_neighbours,
    neighbour_map,
    returned,
    row_weights,
)

needs_faiss = pytest.mark.skipif(not installed("ann"), reason="the extra 'ann' (faiss-cpu) is not installed")
METHODS = ["exact", pytest.param("faiss", marks=needs_faiss)]


def clusters(n: int, dim: int, groups: int, seed: int = 0) -> torch.Tensor:
    """Rows around ``groups`` centres, as far from their own as centres are from each other by half."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, dim))
    rows = centres[rng.integers(groups, size=n)] + 0.7 * rng.standard_normal((n, dim))
    return torch.from_numpy(rows.astype(np.float32))


def by_hand(features: torch.Tensor, k: int, allowed: torch.Tensor, without_self: bool) -> Neighbours:
    rows = features.double().numpy()
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    ids, similarities = np.full((len(rows), k), -1), np.zeros((len(rows), k))
    for row, near in enumerate(unit @ unit.T):
        usable = [
            j for j in range(len(rows)) if allowed[j] and near[j] > 0 and not (without_self and j == row)
        ]
        best = sorted(usable, key=lambda j: (-near[j], j))[:k]
        ids[row, : len(best)], similarities[row, : len(best)] = best, near[best]
    return Neighbours(torch.from_numpy(ids), torch.from_numpy(similarities))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("without_self", [False, True])
def test_against_a_double_loop(method, without_self):
    features = clusters(60, 6, 5)
    features[7] = 0  # an item without the view
    features[21] = features[20] * 2  # the same direction: a tie with itself
    allowed = torch.arange(60) % 5 != 0
    found = item_neighbours(features, 4, allowed=allowed, without_self=without_self, method=method)
    expected = by_hand(features, 4, allowed, without_self)
    assert found.similarities.dtype == torch.float32
    np.testing.assert_allclose(found.similarities.numpy(), expected.similarities.numpy(), atol=1e-6)
    apart = found.ids != expected.ids  # only where two are equally near
    assert apart.sum() <= 4
    assert (found.ids[7] == -1).all()
    assert allowed[found.ids[found.ids >= 0]].all()


@pytest.mark.parametrize("method", METHODS)
def test_fewer_keys_than_neighbours(method):
    features = torch.tensor([[1.0, 0], [1, 0.1], [-1, 0], [0, 0]])
    found = item_neighbours(features, 3, without_self=True, method=method)
    assert found.ids.tolist() == [[1, -1, -1], [0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    nobody = item_neighbours(features, 2, allowed=torch.zeros(4, dtype=torch.bool), method=method)
    assert (nobody.ids == -1).all()
    assert not nobody.similarities.any()
    assert item_neighbours(features[:0], 2, method=method).ids.shape == (0, 2)


@pytest.mark.parametrize("method", METHODS)
def test_double_precision_is_weighed_in_double(method):
    features = clusters(50, 5, 4).double()
    found = item_neighbours(features, 3, without_self=True, method=method)
    expected = by_hand(features, 3, torch.ones(50, dtype=torch.bool), True)
    assert found.similarities.dtype == torch.float64
    np.testing.assert_allclose(found.similarities.numpy(), expected.similarities.numpy(), atol=1e-12)


def test_the_released_graph():
    """Property 3 of mhcr §10: k entries a row, the item itself among them, D^{-½} A D^{-½} with D of row sums."""
    features = torch.rand(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
    near = item_neighbours(features, 4)
    graph = neighbour_map(near, 30, dtype=torch.float64)(torch.eye(30, dtype=torch.float64))
    assert ((graph > 0).sum(dim=1) == 4).all()
    assert (graph.diagonal() > 0).all()
    unit = torch.nn.functional.normalize(features, dim=1)
    cosines = unit @ unit.T
    kept = torch.zeros_like(cosines).scatter(1, near.ids, cosines.gather(1, near.ids))
    assert torch.equal(near.ids.sort(dim=1).values, cosines.topk(4, dim=1).indices.sort(dim=1).values)
    degrees = kept.sum(dim=1)
    torch.testing.assert_close(graph, degrees[:, None] ** -0.5 * kept * degrees**-0.5)
    # Lengths say nothing.
    scaled = features * torch.linspace(0.1, 9, 30, dtype=torch.float64)[:, None]
    again = item_neighbours(scaled, 4)
    assert torch.equal(again.ids, near.ids)
    torch.testing.assert_close(again.similarities, near.similarities)


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_what_comes_back_over_neighbours(hops, monkeypatch):
    """The diagonal of a power of the graph, without the power."""
    near = item_neighbours(clusters(25, 4, 3), 3, without_self=True)
    graph = neighbour_map(near, 25, normalisation="rows", dtype=torch.float64)
    matrix = graph(torch.eye(25, dtype=torch.float64))
    weighed = Neighbours(near.ids, row_weights(near))
    monkeypatch.setattr(knn, "_PATHS", 200)
    found = returned(weighed, weighed, torch.arange(25), hops)
    expected = torch.linalg.matrix_power(matrix, hops).diagonal()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert expected.max() > 0.05


@needs_faiss
def test_recall_where_few_lists_are_read():
    n, k = 12_000, 10
    features = clusters(n, 16, 300)
    exact = item_neighbours(features, k, without_self=True)
    near = item_neighbours(features, k, without_self=True, method="faiss")
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(exact.ids.numpy(), near.ids.numpy(), strict=True))
    assert 0.95 < hits / (n * k) < 1  # approximate in deed, and yet near
    again = item_neighbours(features, k, without_self=True, method="faiss")
    assert torch.equal(near.ids, again.ids)
    assert torch.equal(near.similarities, again.similarities)
    assert (near.similarities.diff(dim=1) <= 0).all()


@needs_faiss
def test_lists_are_read_in_blocks_of_queries(monkeypatch):
    features = torch.nn.functional.normalize(clusters(300, 8, 10), dim=1)
    whole = candidates(features, features, 5)
    monkeypatch.setattr("firstlight.graphs.ann._QUERIES", 64)
    assert torch.equal(candidates(features, features, 5), whole)
    monkeypatch.setattr(knn, "_WEIGHED", 7)
    blocked = item_neighbours(features, 5, method="faiss")
    monkeypatch.undo()
    assert torch.equal(blocked.ids, item_neighbours(features, 5, method="faiss").ids)


def test_auto_weighs_size_and_installation(monkeypatch):
    monkeypatch.setattr(knn, "installed", lambda extra: True)
    assert [chosen_method("auto", n) for n in (10, PAYS_FROM - 1, PAYS_FROM)] == ["exact", "exact", "faiss"]
    monkeypatch.setattr(knn, "installed", lambda extra: False)
    assert chosen_method("auto", 10 * PAYS_FROM) == "exact"
    assert chosen_method("faiss", 10) == "faiss"


def test_it_pays_from_where_the_count_says():
    """112·√n products a query against n (the module's count): half the work at the size that ``auto`` goes by."""
    assert pytest.approx(PAYS_FROM / 2, rel=0.01) == 112 * PAYS_FROM**0.5


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"firstlight\[ann\]"):
        item_neighbours(clusters(50, 4, 2), 3, method="faiss")
