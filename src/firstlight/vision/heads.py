"""Projector and predictor on one feature of the encoder (specs: mim-refiner §2.3)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from firstlight.core.distributed import sum_with_gradient, world
from firstlight.vision.layers import start_weights


class Widths(NamedTuple):
    """Layer widths of a head.

    Attributes:
        projector: Hidden width of the projector.
        predictor: Hidden width of the predictor.
        output: Length of projections and predictions.
    """

    projector: int
    predictor: int
    output: int


WidthName = Literal["base", "tiny", "micro", "debug"]

#: ``base`` is the paper's; the smaller ones are its code's, for smaller data.
WIDTHS: dict[WidthName, Widths] = {
    "base": Widths(2048, 4096, 256),
    "tiny": Widths(1024, 2048, 128),
    "micro": Widths(256, 512, 128),
    "debug": Widths(16, 32, 4),
}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of all ranks (equal numbers of rows on each), on any backend.

    PyTorch's own synchronised form works on GPUs alone. Statistics and sums are in single precision at least.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(n, features)`` rows; n counts one rank's."""
        with torch.autocast(input.device.type, enabled=False):
            rows = input if input.dtype == torch.float64 else input.float()
            if world() == 1 or not self.training:
                return super().forward(rows)
            return self._over_ranks(rows)

    def _over_ranks(self, rows: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        n = len(rows) * world()
        mean = sum_with_gradient(rows.sum(dim=0)) / n
        centred = rows - mean
        # Two passes: a sum of squares minus a squared mean loses the digits that ranks must agree on.
        variance = sum_with_gradient(centred.square().sum(dim=0)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * (n / (n - 1)), self.momentum)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


class Head(nn.Module):
    """Feature → projection z → prediction p; no normalisation to unit length in between.

    Args:
        dim: Length of the feature.
        widths: Layer widths.
        rng: Draws the starts (Xavier uniform).
    """

    def __init__(self, dim: int, widths: Widths, rng: torch.Generator) -> None:
        super().__init__()
        hidden, wide, out = widths
        with torch.device("meta"):  # so that building draws nothing from the global generator
            self.projector = nn.Sequential(
                *_layer(dim, hidden), *_layer(hidden, hidden), *_layer(hidden, out)[:2]
            )
            self.predictor = nn.Sequential(*_layer(out, wide), *_layer(wide, out)[:2])
        self.to_empty(device="cpu")
        start_weights(self, rng)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.reset_parameters()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Project and predict.

        Args:
            features: ``(n, dim)`` rows of all views together, since batch statistics run over all of them.

        Returns:
            Projections and predictions, each ``(n, output)``.
        """
        projections = self.projector(features)
        return projections, self.predictor(projections)


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), BatchNorm(outputs), nn.GELU()]


def head_parameters(dim: int, widths: Widths) -> int:
    """Number of parameters of a head on a feature of length ``dim``."""
    hidden, wide, out = widths
    weights = dim * hidden + hidden * hidden + hidden * out + 2 * out * wide
    return weights + 2 * (2 * hidden + out + wide + out)
