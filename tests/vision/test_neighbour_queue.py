"""The queue of neighbours (specs: mim-refiner §9, 1 to 8)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from firstlight.core.seeds import torch_stream
from firstlight.vision.neighbour_queue import NeighbourQueue


def rng() -> torch.Generator:
    return torch_stream(0, "test")


def queue(size: int = 10, dim: int = 3) -> NeighbourQueue:
    return NeighbourQueue(size, dim, rng())


def batches(count: int, n: int, dim: int = 3) -> list[Tensor]:
    values = torch.arange(count * n * dim, dtype=torch.float32).view(count, n, dim)
    return list(values)


def test_first_in_first_out_with_wrap():
    """Property 1 on the case of the specification: Q = 10, seven pushes of 4."""
    q = queue()
    pushed = batches(7, 4)
    for step, vectors in enumerate(pushed):
        q.push(vectors, torch.arange(4) + 4 * step)
    assert int(q.pointer) == 8
    newest_first = torch.cat(pushed).flip(0)
    for r in range(10):
        assert torch.equal(q.vectors[(int(q.pointer) - 1 - r) % 10], newest_first[r])
        assert int(q.rows[(int(q.pointer) - 1 - r) % 10]) == 27 - r


def test_exact_fill_starts_anew():
    q = queue(8)
    for vectors in batches(2, 4):
        q.push(vectors, torch.arange(4))
    assert int(q.pointer) == 0


def test_ages():
    """Property 2."""
    q = queue()
    for step, vectors in enumerate(batches(3, 4)):
        before = q.ages.clone()
        q.push(vectors, torch.arange(4))
        places = (torch.arange(4) + 4 * step) % 10
        assert (q.ages[places] == 4).all()
        others = torch.ones(10, dtype=torch.bool)
        others[places] = False
        assert torch.equal(q.ages[others], before[others] + 4)


def test_own_image_is_hidden_in_training_only():
    """Property 4."""
    q = queue()
    vectors = batches(1, 2)[0] + 1
    q.push(vectors, torch.tensor([5, 6]))
    queries = vectors.expand(2, 2, 3)
    found = q.lookup(queries, torch.tensor([5, 6]), 1, rng())
    assert not (found.similarity > 1 - 1e-6).all(dim=1).any()
    assert (q.rows[found.best] != torch.tensor([5, 6])).all()
    q.eval()
    found = q.lookup(queries, torch.tensor([5, 6]), 1, rng())
    assert torch.equal(found.vectors, queries)
    assert torch.equal(found.ages, torch.full((2, 2), 2))


def test_stored_vectors_are_raw_and_lengths_do_not_matter():
    """Property 5."""
    q = queue()
    q.push(torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([1]))
    query = torch.tensor([[[0.0, 0.1, 2.0]]]).expand(2, -1, -1)
    found = q.lookup(query, torch.tensor([99]), 1, rng())
    scaled = queue()
    scaled.load_state_dict(q.state_dict())
    scaled.vectors *= torch.rand(10, 1, generator=rng()) + 0.5
    again = scaled.lookup(query * 3, torch.tensor([99]), 1, rng())
    assert torch.equal(found.vectors[0, 0], torch.tensor([0.0, 0.0, 7.0]))
    assert torch.equal(found.best, again.best)
    assert torch.allclose(found.similarity, again.similarity)


def test_evaluation_changes_nothing():
    """Property 6."""
    q = queue().eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    assert before.keys() == {"vectors", "rows", "ages", "pointer"}
    q.push(batches(1, 4)[0], torch.arange(4))
    q.lookup(torch.ones(2, 4, 3), torch.arange(4), 2, rng())
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


def test_draw_is_uniform_among_the_nearest():
    """Property 7: chi-square of 4,000 draws over 4 places stays below the .999 quantile (16.27)."""
    q = queue(20)
    queries = torch.randn(2, 2000, 3, generator=rng())[:, :1].expand(2, 2000, 3)
    nearest = (torch.nn.functional.normalize(q.vectors, dim=1) @ queries[0, 0]).topk(4).indices
    found = q.lookup(queries[:1], torch.full((2000,), 99), 4, rng())
    other = q.lookup(queries[:1], torch.full((2000,), 99), 4, torch_stream(0, "other"))
    drawn = torch.cat([found.vectors[0], other.vectors[0]])
    counts = torch.stack([(drawn == q.vectors[place]).all(dim=1).sum() for place in nearest])
    assert int(counts.sum()) == 4000
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 16.27
    alone = q.lookup(queries, torch.full((2000,), 99), 1, rng())
    assert (alone.best[0] == nearest[0]).all()
    assert (alone.vectors[0] == q.vectors[nearest[0]]).all()


def test_draws_differ_between_views():
    q = queue(20)
    found = q.lookup(torch.ones(2, 50, 3), torch.full((50,), 99), 10, rng())
    assert not torch.equal(found.vectors[0], found.vectors[1])


def test_half_precision_does_not_blur_cosines():
    """Under autocast too: of thousands of near cosines the nearest one is found."""
    q = queue(2000, 8)
    q.vectors[:] = q.vectors[0] + 0.02 * q.vectors
    queries, images = torch.randn(1, 50, 8, generator=rng()) * 0.02 + q.vectors[0], torch.full((50,), 99)
    exact = q.lookup(queries, images, 1, rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = q.lookup(queries, images, 1, rng())
    assert found.similarity.dtype == torch.float32
    assert torch.equal(found.best, exact.best)


def test_too_large_a_batch():
    """Property 8."""
    with pytest.raises(ValueError, match="does not fit"):
        queue(10).push(torch.ones(11, 3), torch.arange(11))
