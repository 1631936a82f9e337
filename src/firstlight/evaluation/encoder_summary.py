"""What measured encoders show: standard errors, paired tests, best blocks, the course over depth; as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.evaluation.encoder_data import LabelledImages
from firstlight.evaluation.encoder_features import Layer
from firstlight.evaluation.encoder_knn import paired_z, standard_error
from firstlight.evaluation.encoder_probe import EncoderResult, ProbeResult

BoolArray = npt.NDArray[np.bool_]

#: How the strongest comparison is called: the refined encoder's last block against the best block before.
LAST_AGAINST_BEST = "last block against the best block"


def summarise(result: ProbeResult, images: LabelledImages) -> dict[str, Any]:
    """Everything as JSON values.

    Args:
        result: What was measured.
        images: What it was measured on.

    Returns:
        ``images``, ``chance``, ``pixels``, ``encoders`` and ``paired``.
    """
    first, *others = result.encoders
    counts = np.bincount(result.truth, minlength=len(images.classes))
    return {
        "images": {
            "source": images.bank.images.source,
            "bank": {"part": images.bank.name, "images": result.n_bank},
            "queries": {"part": images.queries.name, "images": len(result.truth)},
            "classes": images.classes,
            "left_out": result.left_out,
            "content_hash": images.bank.images.content_hash,
        },
        "chance": float(counts.max() / counts.sum()),
        "pixels": [{"k": k, **measured(right)} for k, right in result.pixels.items()],
        "encoders": [_encoder(encoder, result.pixels) for encoder in result.encoders],
        "paired": [row for other in others for row in compare(first, other)],
    }


def measured(right: BoolArray) -> dict[str, float]:
    """A share of right answers and its binomial standard error."""
    accuracy = float(right.mean())
    return {"accuracy": accuracy, "standard_error": standard_error(accuracy, len(right))}


def place(layer: Layer, depth: int) -> dict[str, Any]:
    """A layer as JSON has it: the block, whether it is the output after the final norm, the pooling."""
    output = layer.block == depth
    return {
        "block": depth - 1 if output else layer.block,
        "after_final_norm": output,
        "pooling": layer.pooling,
    }


def best_layer(encoder: EncoderResult, k: int) -> Layer:
    """The layer with the highest k-NN accuracy; the first of equal ones."""
    return max(encoder.knn, key=lambda layer: (encoder.knn[layer][k].sum(), -layer.block))


def rises(encoder: EncoderResult, pooling: str, k: int) -> bool | None:
    """Whether accuracy nowhere falls over the last third of the blocks; None if they were not all measured."""
    blocks = range(encoder.depth - max(2, round(encoder.depth / 3)), encoder.depth)
    layers = [Layer(block, pooling) for block in blocks]  # type: ignore[arg-type]
    if not all(layer in encoder.knn for layer in layers):
        return None
    course = [int(encoder.knn[layer][k].sum()) for layer in layers]
    return all(later >= earlier for earlier, later in pairwise(course))


def compare(before: EncoderResult, after: EncoderResult) -> list[dict[str, Any]]:
    """Paired tests of ``after`` against ``before``.

    k-NN layer by layer, each last block against the best layer before, linear probes, fine-tuned encoders.
    """
    shared = [(layer, layer, "same layer") for layer in before.knn if layer in after.knn]
    rows = []
    for k in next(iter(before.knn.values()), {}):
        best = best_layer(before, k)
        tests = [*shared, *((best, layer, LAST_AGAINST_BEST) for layer in after.last())]
        for old, new, what in tests:
            ends = place(old, before.depth), place(new, after.depth)
            rows.append(_test(what, before, after, before.knn[old][k], after.knn[new][k], k, *ends))
    if before.linear is not None and after.linear is not None:
        rows.append(_test("linear probe", before, after, before.linear.correct, after.linear.correct))
    if before.finetuned is not None and after.finetuned is not None:
        rows.append(_test("fine-tuned", before, after, before.finetuned, after.finetuned))
    return rows


def _test(
    what: str,
    before: EncoderResult,
    after: EncoderResult,
    old: BoolArray,
    new: BoolArray,
    k: int | None = None,
    old_place: Mapping[str, Any] = MappingProxyType({}),
    new_place: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    return {
        "what": what,
        "k": k,
        "before": {"encoder": before.name, **old_place},
        "after": {"encoder": after.name, **new_place},
        "difference": float(new.mean() - old.mean()),
        "z": paired_z(old, new),
    }


def _encoder(encoder: EncoderResult, pixels: dict[int, BoolArray]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": encoder.name, "depth": encoder.depth, "dim": encoder.dim}
    if encoder.knn:
        found["knn"] = _knn(encoder, pixels)
        found["best"] = {
            str(k): place(best_layer(encoder, k), encoder.depth) for k in next(iter(encoder.knn.values()))
        }
        found["rises_over_last_third"] = {
            str(k): {layer.pooling: rises(encoder, layer.pooling, k) for layer in encoder.last()}
            for k in next(iter(encoder.knn.values()))
        }
    if encoder.linear is not None:
        name, rate = encoder.linear.chosen
        found["linear"] = {
            **measured(encoder.linear.correct),
            "chosen": {"input": name, "learning_rate": rate},
            "best_on_queries": encoder.linear.best_on_queries,
            "grid": encoder.linear.grid,
        }
    if encoder.low_shot:
        found["low_shot"] = [
            {
                **place(layer, encoder.depth),
                "labels": entry.labels,
                "images": entry.images,
                "accuracy": entry.mean,
                "deviation": entry.deviation,
                "splits": list(entry.accuracies),
            }
            for layer, entries in encoder.low_shot.items()
            for entry in entries
        ]
    if encoder.clusters:
        found["clusters"] = [
            {**place(layer, encoder.depth), **vars(entry)} for layer, entry in encoder.clusters.items()
        ]
    if encoder.finetuned is not None:
        found["finetuned"] = measured(encoder.finetuned)
    return found


def _knn(encoder: EncoderResult, pixels: dict[int, BoolArray]) -> list[dict[str, Any]]:
    return [
        {
            **place(layer, encoder.depth),
            "k": k,
            **measured(right),
            "z_pixels": paired_z(pixels[k], right) if k in pixels else None,
        }
        for layer, by_k in encoder.knn.items()
        for k, right in by_k.items()
    ]
