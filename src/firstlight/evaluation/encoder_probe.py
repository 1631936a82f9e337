"""All protocols over several encoders on the same images, so that they can be compared query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from firstlight.core.devices import chosen_device
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.seeds import torch_stream
from firstlight.evaluation.encoder_clusters import ClusterResult, cluster
from firstlight.evaluation.encoder_config import ProbeConfig
from firstlight.evaluation.encoder_data import LabelledImages
from firstlight.evaluation.encoder_features import Layer, encoder_layers, extract, poolings
from firstlight.evaluation.encoder_finetune import finetune
from firstlight.evaluation.encoder_knn import knn_classify
from firstlight.evaluation.encoder_linear import LinearResult, linear_probe
from firstlight.evaluation.encoder_low_shot import LowShotResult, low_shot
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.vit import ViT

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: What can be measured.
TASKS = ("knn", "linear", "low-shot", "clusters", "finetune")
#: The name of an encoder that has learned nothing.
RANDOM = "random start"


@dataclass(frozen=True, eq=False)
class EncoderResult:
    """What was measured of one encoder; a protocol that was not asked for is empty or None.

    Attributes:
        name: The encoder's name.
        depth: Its blocks.
        dim: Its width.
        knn: Layer → k → ``(m,)`` whether each query was classified rightly.
        linear: The linear probes.
        low_shot: Layer → one result a number of labels.
        clusters: Layer → clustering of the queries.
        finetuned: ``(m,)`` whether each query was right after fine-tuning.
    """

    name: str
    depth: int
    dim: int
    knn: dict[Layer, dict[int, BoolArray]] = field(default_factory=dict)
    linear: LinearResult | None = None
    low_shot: dict[Layer, list[LowShotResult]] = field(default_factory=dict)
    clusters: dict[Layer, ClusterResult] = field(default_factory=dict)
    finetuned: BoolArray | None = None

    def last(self) -> list[Layer]:
        """The raw output of the last block, by pooling."""
        return [layer for layer in self.knn if layer.block == self.depth - 1]


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What was measured of all encoders on the same queries.

    Attributes:
        encoders: In the order given; the first is what the others are compared with.
        pixels: k → ``(m,)`` whether k-NN on raw pixels was right; empty if k-NN was not asked for.
        truth: ``(m,)`` class of each query that could be read.
        n_bank: Images of the bank that could be read.
        left_out: Images that could not be read.
    """

    encoders: list[EncoderResult]
    pixels: dict[int, BoolArray]
    truth: IntArray
    n_bank: int
    left_out: int


def random_control(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same shape that has learned nothing."""
    rng = torch_stream(seed, "random-control")
    return replace(encoder, vit=ViT(encoder.vit.config, rng), history=[])


def probe_encoders(
    encoders: Mapping[str, Encoder],
    images: LabelledImages,
    config: ProbeConfig,
    tasks: Sequence[str] = TASKS[:-1],
    emit: Emit = silent,
) -> ProbeResult:
    """Measure encoders one after the other.

    Args:
        encoders: Name → encoder; fine-tuning works on copies.
        images: Bank and queries.
        config: Settings of the protocols.
        tasks: Which of :data:`TASKS`.
        emit: Gets ``message`` and ``images`` events.

    Raises:
        InputError: Fewer images than the protocols need can be read, or no k fits the bank.
    """
    results: list[EncoderResult] = []
    pixels: dict[int, BoolArray] = {}
    truth, n_bank, left_out = images.queries.labels, len(images.bank.rows), 0
    device = chosen_device(config.device)
    for name, encoder in encoders.items():
        emit("message", text=f"measuring {name}")
        encoder.vit.to(device)
        layers = encoder_layers(encoder, config.blocks)
        bank = extract(encoder, images.bank.images, images.bank.rows, layers, emit)
        queries = extract(encoder, images.queries.images, images.queries.rows, layers, emit)
        data = _Data(
            _labels_of(images.bank.rows, images.bank.labels, bank.rows),
            _labels_of(images.queries.rows, images.queries.labels, queries.rows),
            len(images.classes),
        )
        data.check(config)
        truth, n_bank = data.truth, len(data.labels)
        left_out = len(images.bank.rows) + len(images.queries.rows) - n_bank - len(truth)
        if "knn" in tasks and not results:
            pixels = data.knn(bank.pixels, queries.pixels, config)
        results.append(_measure(name, encoder, bank.layers, queries.layers, data, config, tasks, emit))
        del bank, queries
        if "finetune" in tasks:
            right = finetune(encoder, images, config.finetune, config.seed, emit)
            results[-1] = replace(results[-1], finetuned=right)
        encoder.vit.cpu()
    return ProbeResult(results, pixels, truth, n_bank, left_out)


@dataclass(frozen=True, eq=False)
class _Data:
    """Classes of the images that could be read."""

    labels: IntArray
    truth: IntArray
    n_classes: int

    def check(self, config: ProbeConfig) -> None:
        labels, truth = self.labels, self.truth
        if len(labels) < 2 or len(truth) < 2 or len(np.unique(labels)) < 2:
            raise InputError(
                f"{len(labels)} bank images of {len(np.unique(labels))} classes and {len(truth)} queries "
                "are too few"
            )
        if min(config.knn.k) > len(labels):
            raise InputError(f"k = {min(config.knn.k)} neighbours of a bank of {len(labels)} images")

    def knn(self, bank: Tensor, queries: Tensor, config: ProbeConfig) -> dict[int, BoolArray]:
        found = knn_classify(bank, self.labels, queries, self.n_classes, config.knn.k, config.knn.temperature)
        return {k: predicted == self.truth for k, predicted in found.items()}


def _measure(
    name: str,
    encoder: Encoder,
    bank: Mapping[Layer, Tensor],
    queries: Mapping[Layer, Tensor],
    data: _Data,
    config: ProbeConfig,
    tasks: Sequence[str],
    emit: Emit,
) -> EncoderResult:
    """Everything that cached features are enough for."""
    depth, seed = encoder.vit.config.depth, config.seed
    found = EncoderResult(name, depth, encoder.vit.config.dim)
    if "knn" in tasks:
        emit("message", text=f"{name}: nearest neighbours at {len(bank)} layers")
        found.knn.update({layer: data.knn(bank[layer], queries[layer], config) for layer in bank})
    last = [Layer(depth - 1, pooling) for pooling in poolings(encoder)]
    if "low-shot" in tasks:
        emit("message", text=f"{name}: few labels")
        for layer in last:
            found.low_shot[layer] = low_shot(
                bank[layer], data.labels, queries[layer], data.truth, config.low_shot, seed
            )
    if "clusters" in tasks:
        emit("message", text=f"{name}: clusters")
        found.clusters.update(
            {layer: cluster(queries[layer], data.truth, config.clusters, seed) for layer in last}
        )
    if "linear" not in tasks:
        return found
    emit("message", text=f"{name}: linear probes")
    linear = linear_probe(bank, data.labels, queries, data.truth, depth, data.n_classes, config.linear, seed)
    return replace(found, linear=linear)


def _labels_of(rows: IntArray, labels: IntArray, read: IntArray) -> IntArray:
    """The labels of those rows that could be read; ``rows`` ascend."""
    found: IntArray = labels[np.searchsorted(rows, read)]
    return found
