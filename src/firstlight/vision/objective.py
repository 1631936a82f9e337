"""What an objective of encoder training is: the seam between the objectives here and the loop in ``training/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from firstlight.core.distributed import rank, world

if TYPE_CHECKING:
    from firstlight.vision.vit import ViT


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Augmented images of one step.

    Attributes:
        views: One ``(b, 3, h, w)`` float32 tensor a view (crop), mean and standard deviation taken out.
        rows: ``(b,)`` int64: which image each is of.
    """

    views: list[Tensor]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> ImageBatch:
        """The same batch on a device."""
        return ImageBatch([view.to(device, non_blocking=True) for view in self.views], self.rows.to(device))


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        name: Stands in logs and checkpoints.
        parameters: The parameters, in a fixed order.
        lr_scale: Factor on the schedule's rate.
        weight_decay: Decoupled weight decay; None: the run's.
    """

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


@runtime_checkable
class Objective(Protocol):
    """A module that knows its loss; it holds the encoder and whatever else learns beside it."""

    encoder: ViT

    def loss(self, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Named losses, already weighted; their sum is minimised.

        Args:
            batch: This rank's images.
            rng: CPU stream of this step, the same on every rank; draw through :func:`uniform`.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """What is trained, and how fast."""

    def after_step(self, step: int, total: int) -> None:
        """Called after each update (0-based ``step`` of ``total``): moving averages and the like."""

    def figures(self) -> dict[str, float]:
        """Numbers to log with the epoch, beside losses."""


def decay_groups(
    name: str, modules: Sequence[nn.Module], *, lr_scale: float = 1.0, weight_decay: float | None = None
) -> list[ParameterGroup]:
    """Two groups: matrices with weight decay; biases, scales and tokens without.

    Args:
        name: The first group's name; the second's ends in ``-no-decay``.
        modules: Where the parameters are; frozen ones are left out.
        lr_scale: As in :class:`ParameterGroup`.
        weight_decay: As in :class:`ParameterGroup`, of the first group.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decayed if decays(key, parameter) else free).append(parameter)
    groups = [
        ParameterGroup(name, decayed, lr_scale, weight_decay),
        ParameterGroup(f"{name}-no-decay", free, lr_scale, 0.0),
    ]
    return [group for group in groups if group.parameters]


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay touches a parameter: not if it is a bias, a scale, a token or a position."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and not last.endswith(("bias", "_token", "pos_embed"))


def uniform(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Uniform numbers for this rank's rows out of those for the global batch.

    So that several ranks draw what one process would draw for the whole batch.

    Args:
        rows: Images on this rank; the same on every rank.
        columns: Numbers an image.
        rng: A CPU stream, in the same state on every rank.

    Returns:
        ``(rows, columns)`` float32 in [0, 1), on the CPU.
    """
    drawn = torch.rand(rows * world(), columns, generator=rng)
    return drawn[rank() * rows : (rank() + 1) * rows]
