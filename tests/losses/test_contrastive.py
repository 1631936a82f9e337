"""Contrastive losses against hand-made answers and dense double-precision forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from firstlight.core import logsumexp
from firstlight.core.seeds import torch_stream
from firstlight.losses.contrastive import info_nce, joint_contrast, pairwise_contrast, rank_contrast


def t(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


A, B, C = t([[1, 0], [0, 1]]), t([[1, 1], [0, 2]]), t([[0, 1], [-1, 0]])
TABLE = t([[1, 1], [0, 2], [-1, 0]])


def test_oracles_of_the_specification():
    assert float(info_nce(A, B, 0.2)) == pytest.approx(0.11835852, abs=5e-9)
    assert float(joint_contrast([A, B, C], TABLE, 0.2)) == pytest.approx(2.98726676, abs=5e-9)
    x, y = t([[3, 1, 2], [1, -1, 0]]), t([[1, 2, 3], [5, 0, -5]])
    assert float(rank_contrast(x, y, torch.tensor([1, 0]), 0.1)) == pytest.approx(0.00198657, abs=1e-8)
    assert float(rank_contrast(x, y, torch.tensor([0, 1]), 0.1)) == pytest.approx(0.69314718, abs=5e-9)


def dense_joint(views: list[torch.Tensor], table: torch.Tensor, temperature: float) -> torch.Tensor:
    a, b, c = (F.normalize(view, dim=1) for view in views)
    keys = F.normalize(table, dim=1)
    total = sum((x @ keys.T / temperature).exp().sum(dim=1) for x in (a, b, c))
    positive = sum(((x * y).sum(dim=1) / temperature).exp() for x, y in ((a, b), (a, c), (b, c)))
    return -(positive / total).log().sum()


@pytest.mark.parametrize("tile", [1, 7, 10**6])
def test_chunked_is_dense_in_value_and_gradient(tile, monkeypatch):
    """Property 8, to 1e-10 in double precision, whatever the tile."""
    monkeypatch.setattr(
        logsumexp.score_log_sum_exp,
        "__kwdefaults__",
        {
            **logsumexp.score_log_sum_exp.__kwdefaults__,
            "tile": tile,
        },
    )
    rng = torch_stream(0, "views")
    leaves = [torch.randn(n, 4, generator=rng, dtype=torch.float64).requires_grad_() for n in (5, 5, 5, 11)]
    ours = joint_contrast(leaves[:3], leaves[3], 0.2)
    dense = dense_joint(leaves[:3], leaves[3], 0.2)
    assert float(ours.detach()) == pytest.approx(float(dense.detach()), abs=1e-10)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(dense, leaves), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_bounds_and_scale():
    rng = torch_stream(1, "rows")
    a, b, c = (torch.randn(6, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    scale = torch.rand(6, 1, generator=rng, dtype=torch.float64) + 0.1
    value = float(info_nce(a, b, 0.2))
    assert 0 <= value <= float(torch.log(torch.tensor(6.0))) + 2 / 0.2
    assert float(info_nce(a * scale, b, 0.2)) == pytest.approx(value, abs=1e-12)
    assert float(joint_contrast([a, b, c], torch.cat([a, b, c]), 0.2)) >= 0
    order = torch.randperm(6, generator=rng)
    assert float(rank_contrast(a * scale, b, order, 0.1)) == pytest.approx(
        float(rank_contrast(a, b, order, 0.1)), abs=1e-12
    )
    assert float(pairwise_contrast([a, b], 0.2)) == pytest.approx(
        float((info_nce(a, b, 0.2) + info_nce(b, a, 0.2)) / 2), abs=1e-12
    )
    # A row's length is of no account to the joint form either, in whichever view or table it stands.
    joint = float(joint_contrast([a, b, c], a, 0.2))
    assert float(joint_contrast([a * scale, b, c / scale], a * scale**2, 0.2)) == pytest.approx(
        joint, abs=1e-12
    )


def test_sorted_comparison_stays_within_its_bounds():
    """Cosines lie within ±1, so the loss lies between softplus(−20) and softplus(20), and comes near to both."""
    low, high = F.softplus(t([[-20, 20]]))[0].tolist()
    opposite, swap = t([[1, 1, 1], [-1, -1, -1]]), torch.tensor([1, 0])
    assert float(rank_contrast(opposite, opposite, swap, 0.1)) == pytest.approx(low, rel=1e-9)
    assert float(rank_contrast(opposite, -opposite, swap, 0.1)) == pytest.approx(high, rel=1e-9)
    rng = torch_stream(2, "rows")
    for _ in range(5):
        x, y = (torch.randn(7, 4, generator=rng, dtype=torch.float64) for _ in range(2))
        assert low <= float(rank_contrast(x, y, torch.randperm(7, generator=rng), 0.1)) <= high
