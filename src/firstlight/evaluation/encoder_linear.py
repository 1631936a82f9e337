"""A grid of linear probes on cached features, all trained at once (specs/mim-refiner.md §4.2).

Every learning rate is a block of columns of one weight matrix. The losses of the probes add up, so their gradients do
not mix, and one product a step serves the whole grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from firstlight.core.errors import InputError
from firstlight.core.schedules import warmup_cosine
from firstlight.core.seeds import numpy_stream, torch_stream
from firstlight.evaluation.encoder_config import LinearConfig
from firstlight.evaluation.encoder_features import Layer
from firstlight.evaluation.encoder_subsets import held_out

IntArray = npt.NDArray[np.int64]

_REFERENCE_BATCH = 256
_ROWS_AT_ONCE = 4096
_MOMENTUM = 0.9
_START_DEVIATION = 0.01


def probe_inputs(depth: int, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """What probes look at: the output or the last four blocks' raw outputs, of the class token or of both poolings.

    Args:
        depth: Blocks of the encoder.
        layers: The layers whose features are cached.

    Returns:
        Name → layers to put side by side; an encoder without a class token has the mean alone.
    """
    by_class = any(layer.pooling == "class" for layer in layers)
    ways = {"class": ("class",), "class+mean": ("class", "mean")} if by_class else {"mean": ("mean",)}
    output = max(layer.block for layer in layers)
    last = {"last 1": [output], "last 4": list(range(max(0, depth - 4), depth))}
    return {
        f"{way}, {name}": [Layer(block, pooling) for pooling in poolings for block in blocks]  # type: ignore[arg-type]
        for way, poolings in ways.items()
        for name, blocks in last.items()
    }


class ProbeGrid(nn.Module):
    """Linear classifiers on the same input, one a learning rate.

    Args:
        dim: Width of the input.
        n_classes: Classes.
        rates: Learning rates of the classifiers.
        rng: Draws the start.
    """

    def __init__(self, dim: int, n_classes: int, rates: Sequence[float], rng: torch.Generator) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.norm = nn.BatchNorm1d(dim, affine=False)
        columns = len(rates) * n_classes
        weight = torch.empty(dim, columns)
        nn.init.trunc_normal_(weight, std=_START_DEVIATION, generator=rng)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(columns))
        self.register_buffer("rates", torch.tensor(list(rates)).repeat_interleave(n_classes))
        self.weight: Tensor
        self.bias: Tensor
        self.rates: Tensor
        self._moving = (torch.zeros_like(weight), torch.zeros(columns))

    def forward(self, features: Tensor) -> Tensor:
        """``(b, dim)`` to ``(b, rates, classes)`` logits."""
        logits = torch.addmm(self.bias, self.norm(features), self.weight)
        return logits.view(len(features), -1, self.n_classes)

    def step(self, features: Tensor, labels: Tensor, scale: float) -> None:
        """One step of SGD with momentum on cross-entropy, for every probe at its own rate times ``scale``.

        The gradient of the logits is known in closed form: softmax minus one-hot.
        """
        rows = self.norm(features)
        logits = torch.addmm(self.bias, rows, self.weight).view(len(rows), -1, self.n_classes)
        slope = logits.softmax(dim=2)
        slope[torch.arange(len(rows)), :, labels] -= 1
        slope = slope.view(len(rows), -1) / len(rows)
        moving_weight, moving_bias = self._moving
        moving_weight.mul_(_MOMENTUM).addmm_(rows.T, slope)
        moving_bias.mul_(_MOMENTUM).add_(slope.sum(dim=0))
        self.weight -= moving_weight * (self.rates * scale)
        self.bias -= moving_bias * (self.rates * scale)


@torch.inference_mode()
def train_grid(
    parts: Sequence[Tensor], rows: IntArray, labels: IntArray, n_classes: int, config: LinearConfig, seed: int
) -> ProbeGrid:
    """Train all probes of one input.

    Args:
        parts: ``(n, dim)`` matrices that lie side by side in the input.
        rows: Rows to train on.
        labels: ``(n,)`` classes of all rows.
        n_classes: Number of classes.
        config: The grid.
        seed: Of start and order.

    Returns:
        The probes, in evaluation mode.
    """
    dim = sum(part.shape[1] for part in parts)
    batch = min(config.batch_size, len(rows))
    to_batch = batch / _REFERENCE_BATCH
    rates = [rate * to_batch for rate in config.learning_rates]
    grid = ProbeGrid(dim, n_classes, rates, torch_stream(seed, "linear-start")).train()
    targets = torch.from_numpy(labels)
    per_epoch = len(rows) // batch
    steps = config.epochs * per_epoch
    warmup = round(config.warmup * steps)
    for epoch in range(config.epochs):
        order = rows[numpy_stream(seed, "linear-order", epoch).permutation(len(rows))]
        for step in range(per_epoch):
            chosen = torch.from_numpy(order[step * batch : (step + 1) * batch])
            inputs = torch.cat([part[chosen] for part in parts], dim=1)
            factor = warmup_cosine(epoch * per_epoch + step, steps, warmup, peak=1.0, end=0.0)
            grid.step(inputs, targets[chosen], factor)
    return grid.eval()


@torch.inference_mode()
def predictions(grid: ProbeGrid, parts: Sequence[Tensor], rows: IntArray) -> IntArray:
    """``(rates, len(rows))`` predicted classes."""
    found = [
        grid(
            torch.cat([part[torch.from_numpy(rows[start : start + _ROWS_AT_ONCE])] for part in parts], dim=1)
        )
        .argmax(dim=2)
        .T.numpy()
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]
    joined: IntArray = np.concatenate(found, axis=1)
    return joined


@dataclass(frozen=True, eq=False)
class LinearResult:
    """The outcome of the grid.

    Attributes:
        chosen: Input and learning rate (per 256) of the probe that was best on the held-out part of the bank.
        correct: ``(m,)`` whether it has each query right, trained on the whole bank.
        best_on_queries: The highest accuracy of any probe on the queries: how the paper reports, and optimistic.
        grid: Input → accuracy on the queries by learning rate.
    """

    chosen: tuple[str, float]
    correct: npt.NDArray[np.bool_]
    best_on_queries: float
    grid: dict[str, list[float]]


def linear_probe(
    bank: Mapping[Layer, Tensor],
    labels: IntArray,
    queries: Mapping[Layer, Tensor],
    truth: IntArray,
    depth: int,
    n_classes: int,
    config: LinearConfig,
    seed: int,
) -> LinearResult:
    """Train the grid twice: without a held-out part, on which the probe is chosen, then on the whole bank.

    Args:
        bank: Layer → ``(n, dim)``.
        labels: ``(n,)`` classes.
        queries: Layer → ``(m, dim)``.
        truth: ``(m,)`` classes.
        depth: Blocks of the encoder.
        n_classes: Number of classes.
        config: The grid.
        seed: Of all draws.

    Raises:
        InputError: Every class has a single image in the bank.
    """
    held, kept = held_out(labels, config.holdout, seed)
    if not len(held):
        raise InputError(
            "no class of the bank has two images: none is left to choose a linear probe on",
            hint="measure without linear probes (--tasks)",
        )
    everything, asked = np.arange(len(labels)), np.arange(len(truth))
    best, chosen, correct = -1.0, ("", 0.0), np.zeros(len(truth), bool)
    by_input: dict[str, list[float]] = {}
    for name, layers in probe_inputs(depth, list(bank)).items():
        parts, query_parts = [bank[layer] for layer in layers], [queries[layer] for layer in layers]
        rehearsal = train_grid(parts, kept, labels, n_classes, config, seed)
        rehearsed = (predictions(rehearsal, parts, held) == labels[held]).mean(axis=1)
        final = train_grid(parts, everything, labels, n_classes, config, seed)
        right = predictions(final, query_parts, asked) == truth
        by_input[name] = right.mean(axis=1).tolist()
        index = int(rehearsed.argmax())
        if rehearsed[index] > best:
            best, correct = float(rehearsed[index]), right[index]
            chosen = (name, config.learning_rates[index])
    return LinearResult(chosen, correct, max(max(values) for values in by_input.values()), by_input)
