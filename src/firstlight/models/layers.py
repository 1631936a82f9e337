"""Small dense layers with seeded starts, and batch normalisation that is told whether it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def xavier(rows: int, columns: int, rng: torch.Generator) -> nn.Parameter:
    """``(rows, columns)`` Xavier-uniform: bounds ±√(6/(rows + columns))."""
    bound = sqrt(6 / (rows + columns))
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=rng))


class Linear(nn.Module):
    """x Wᵀ + b, started as PyTorch's own layer: uniform within ±1/√inputs, but from a given stream.

    Args:
        inputs: Width of x.
        outputs: Width of the result.
        rng: Random stream of the start.
        bias: Whether there is a b.
    """

    def __init__(self, inputs: int, outputs: int, rng: torch.Generator, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / sqrt(max(1, inputs))
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=rng))
        self.bias = (
            nn.Parameter(torch.empty(outputs).uniform_(-bound, bound, generator=rng)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs)`` → ``(n, outputs)``."""
        return F.linear(x, self.weight, self.bias)


class BatchNorm(nn.Module):
    """Batch normalisation over rows (momentum .1, eps 1e-5); the caller says whether this pass trains.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        #: Weight of a pass in the running statistics; zero while a pass is computed a second time.
        self.momentum = 0.1
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """By the batch's own statistics in training (running ones are updated), else by the running ones.

        A single row has no variance, and goes by the running ones in training, too.
        """
        own = training and len(x) > 1
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, own, self.momentum, 1e-5)


def drop(x: Tensor, rate: float, rng: torch.Generator | None) -> Tensor:
    """Inverted dropout; nothing in evaluation (``rng`` None)."""
    if rng is None or rate == 0:
        return x
    return x * (torch.rand(x.shape, generator=rng) >= rate) / (1 - rate)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, passes leave the running statistics of every batch normalisation in ``module`` alone."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def made_again(work: Callable[..., Tensor], module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """``work(*inputs)``, keeping for the backward pass the inputs alone and computing the rest a second time.

    PyTorch's own checkpoint does the same, but its first call imports the compiler: a second and a hundred megabytes.

    Args:
        work: Draws no random numbers; reads parameters of ``module`` only.
        module: Its running statistics count the first pass, not the second.
        inputs: What ``work`` reads.
    """
    parameters = [part for part in module.parameters() if part.requires_grad]
    result: Tensor = _MadeAgain.apply(  # type: ignore[no-untyped-call]
        work, module, len(inputs), *inputs, *parameters
    )
    return result


class _MadeAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Callable[..., Tensor], module: nn.Module, n: int, *tensors: Tensor) -> Tensor:
        ctx.work, ctx.module, ctx.n = work, module, n
        ctx.save_for_backward(*tensors[:n])
        ctx.parameters = tensors[n:]
        return work(*tensors[:n])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad(), still_statistics(ctx.module):
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            result = ctx.work(*inputs)
            found = torch.autograd.grad(result, [*inputs, *ctx.parameters], gradients[0], allow_unused=True)
        return (None, None, None, *found)
