"""One process alone: every collective is the identity. Two ranks: tests/vision/test_two_ranks.py."""

from __future__ import annotations

import torch

from firstlight.core import distributed


def test_alone():
    t = torch.ones(3, 2, requires_grad=True)
    with distributed.process_group():
        assert (distributed.rank(), distributed.world()) == (0, 1)
        assert distributed.own_slice(7) == slice(0, 7)
        assert distributed.gather_with_gradient(t) is t
        assert distributed.sum_with_gradient(t) is t
        assert not distributed.gather(t).requires_grad
        (t.sum() * 2).backward()
        distributed.average_gradients([torch.nn.Parameter(t.detach())])
        assert torch.equal(t.grad, torch.full((3, 2), 2.0))
