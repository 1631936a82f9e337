"""Projector and predictor (specs: mim-refiner §2.3)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.core.seeds import torch_stream
from firstlight.vision.heads import WIDTHS, BatchNorm, Head, head_parameters


@pytest.mark.parametrize("widths", ["micro", "debug"])
def test_layers_and_size(widths):
    head = Head(24, WIDTHS[widths], torch_stream(0, "head"))
    hidden, wide, out = WIDTHS[widths]
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    shapes = [(layer.in_features, layer.out_features) for layer in linears]
    assert shapes == [(24, hidden), (hidden, hidden), (hidden, out), (out, wide), (wide, out)]
    assert all(layer.bias is None for layer in linears)
    assert [type(module).__name__ for module in head.predictor] == [
        "Linear",
        "BatchNorm",
        "GELU",
        "Linear",
        "BatchNorm",
    ]
    assert sum(p.numel() for p in head.parameters()) == head_parameters(24, WIDTHS[widths])
    bound = (6 / (24 + hidden)) ** 0.5
    assert 0.9 * bound < float(linears[0].weight.detach().abs().max()) <= bound


def test_size_in_the_paper():
    """8.9 M parameters a head on ViT-L, 9.5 M on ViT-H, 12.1 M on the 2B model."""
    sizes = [round(head_parameters(dim, WIDTHS["base"]) / 1e6, 1) for dim in (1024, 1280, 2560)]
    assert sizes == [8.9, 9.5, 12.1]


def test_start_is_decided_by_the_stream():
    torch.manual_seed(1)
    first = Head(8, WIDTHS["debug"], torch_stream(3, "head")).state_dict()
    torch.manual_seed(2)
    second = Head(8, WIDTHS["debug"], torch_stream(3, "head")).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_batch_norm_by_hand():
    norm = BatchNorm(2)
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    mean, variance = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
    assert torch.allclose(norm(rows), (rows - mean) / (variance + 1e-5).sqrt(), atol=1e-6)
    assert torch.allclose(norm.running_mean, 0.1 * mean)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * rows.var(dim=0))


def test_projection_and_prediction_are_no_unit_vectors_and_follow_each_other():
    head = Head(8, WIDTHS["debug"], torch_stream(3, "head"))
    z, p = head(torch.randn(12, 8, generator=torch_stream(0, "rows")))
    assert torch.allclose(z.var(dim=0, unbiased=False), torch.ones(4), atol=1e-2)
    assert not torch.allclose(z.norm(dim=1), torch.ones(12), atol=0.1)
    assert torch.equal(head.predictor(z), p)
