"""Adam that visits only the rows a step touched, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class RowAdam:
    """Adam (Kingma & Ba 2015) with lazy rows: rows without a gradient keep value and moments.

    A step touches a few thousand of the rows of an embedding table; dense Adam would rewrite all of them and
    cost more than the loss. For parameters with dense gradients this is plain Adam.

    Args:
        parameters: (name, parameter) pairs.
        lr: Learning rate until :meth:`step` is told another.
        betas: Decays of the moments.
        eps: Added to the denominator.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = dict(parameters)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.steps = 0
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Apply the gradients once, at ``lr`` if given."""
        self.steps += 1
        lr = self.lr if lr is None else lr
        correction = math.sqrt(1 - self.betas[1] ** self.steps)
        size = lr * correction / (1 - self.betas[0] ** self.steps)
        eps = self.eps * correction
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                self._rows(name, parameter, parameter.grad, size, eps)
            else:
                self._dense(name, parameter, parameter.grad, lr)

    def _dense(self, name: str, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        # PyTorch's fused kernel reads and writes each table once; it counts the step itself, hence the - 1.
        adam(
            [parameter],
            [gradient],
            [self.first[name]],
            [self.second[name]],
            [],
            [torch.tensor(self.steps - 1.0)],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def _rows(self, name: str, parameter: Tensor, gradient: Tensor, size: float, eps: float) -> None:
        rows, slots = torch.unique(gradient._indices()[0], return_inverse=True)
        values = gradient._values()
        summed = torch.zeros(len(rows), values.shape[1]).index_add_(0, slots, values)
        first = self.first[name][rows].lerp_(summed, 1 - self.betas[0])
        second = self.second[name][rows].mul_(self.betas[1])
        second.addcmul_(summed, summed, value=1 - self.betas[1])
        self.first[name].index_copy_(0, rows, first)
        self.second[name].index_copy_(0, rows, second)
        parameter.index_add_(0, rows, first.div_(second.sqrt_().add_(eps)), alpha=-size)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and the step count, flat, for a safetensors file."""
        state = {f"first.{name}": value for name, value in self.first.items()}
        state |= {f"second.{name}": value for name, value in self.second.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.steps = int(state["steps"])
        for name in self.parameters:
            self.first[name].copy_(state[f"first.{name}"])
            self.second[name].copy_(state[f"second.{name}"])


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: int) -> float:
    """The learning rate of one step.

    Args:
        step: 0-based.
        total: Steps in the horizon.
        peak: Rate after the warm-up.
        schedule: ``constant``, ``cosine`` or ``linear``; both of the latter end at zero.
        warmup: Steps of linear rise.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak * (1 - progress) if schedule == "linear" else peak


def all_finite(tensors: Iterable[Any]) -> bool:
    """Whether every value of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
