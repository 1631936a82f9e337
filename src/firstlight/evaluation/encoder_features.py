"""Features of every block and pooling of an encoder, from one forward pass over the images.

Images are read, run and pooled a block at a time; what stays is one ``(n, dim)`` float32 matrix a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.events import Emit, silent
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.vit import pool

IntArray = npt.NDArray[np.int64]
Pooling = Literal["class", "mean"]

_TOKEN_BYTES = 256 << 20  # outputs of all blocks held at once
_MOST_IMAGES = 256
_MOST_PIXELS = 32  # on the longer side of the raw-pixel reference: beyond it, distance is dominated by detail


class Layer(NamedTuple):
    """Where features are taken.

    Attributes:
        block: 0-based block, its raw output; the depth stands for the encoder's output, after the final norm.
        pooling: ``class`` token or ``mean`` of the patches.
    """

    block: int
    pooling: Pooling


@dataclass(frozen=True)
class Features:
    """Features of a set of images.

    Attributes:
        rows: ``(n,)`` rows of the image set that could be read, in the order asked for.
        layers: Layer → ``(n, dim)`` float32.
        pixels: ``(n, 3·h·w)`` float32 of the prepared images, averaged down to at most 32 pixels a side.
    """

    rows: IntArray
    layers: dict[Layer, Tensor]
    pixels: Tensor


def poolings(encoder: Encoder) -> list[Pooling]:
    """The poolings that an encoder has."""
    return ["class", "mean"] if encoder.vit.config.class_token else ["mean"]


def encoder_layers(encoder: Encoder, blocks: Sequence[int] | None = None) -> list[Layer]:
    """The layers to measure: the chosen blocks' raw outputs, the last four (linear probes need them), the output.

    Args:
        encoder: The encoder.
        blocks: 0-based blocks; all if None.

    Returns:
        By block, then pooling. A block that the encoder does not have is left out; the output is left out where no
        norm follows the last block, since it is the same.
    """
    config = encoder.vit.config
    chosen = range(config.depth) if blocks is None else blocks
    taken = {block for block in chosen if block < config.depth}
    taken |= set(range(max(0, config.depth - 4), config.depth))
    if config.norm == "pre" and config.final_norm:
        taken.add(config.depth)
    return [Layer(block, pooling) for block in sorted(taken) for pooling in poolings(encoder)]


@torch.inference_mode()
def extract(
    encoder: Encoder, images: ImageSet, rows: IntArray, layers: Sequence[Layer], emit: Emit = silent
) -> Features:
    """Run images through an encoder once and keep the pooled tokens of all layers.

    Args:
        encoder: The encoder, in evaluation mode, on any device.
        images: Where they are read from.
        rows: ``(n,)`` rows to read.
        layers: What to keep.
        emit: Gets ``message`` for images that cannot be read (they are left out) and ``images`` for progress.

    Returns:
        The features, on the CPU.
    """
    device = next(encoder.vit.parameters()).device
    blocks = sorted({layer.block for layer in layers})
    encoder.vit.eval()
    size = _images_at_once(encoder, len(blocks))
    held = {layer: torch.empty(len(rows), encoder.vit.config.dim) for layer in layers}
    pixels = torch.empty(0)
    kept: list[int] = []
    for start in range(0, len(rows), size):
        ready, read = _read(encoder, images, rows[start : start + size], emit)
        if not ready:
            continue
        batch = torch.stack(ready)
        here = slice(len(kept), len(kept) + len(batch))
        if not kept:
            pixels = torch.empty(len(rows), small_pixels(batch).shape[1])
        pixels[here] = small_pixels(batch)
        outputs = encoder.vit.forward_intermediates(batch.to(device), blocks)
        for layer in layers:
            held[layer][here] = pool(outputs[layer.block], encoder.vit.prefix, layer.pooling).float().cpu()
        kept += read
        emit("images", done=start + len(rows[start : start + size]), total=len(rows))
    n = len(kept)
    return Features(
        np.asarray(kept, np.int64), {layer: values[:n] for layer, values in held.items()}, pixels[:n]
    )


def _read(encoder: Encoder, images: ImageSet, rows: IntArray, emit: Emit) -> tuple[list[Tensor], list[int]]:
    """Prepared images and their rows; those that cannot be read are reported and left out."""
    ready: list[Tensor] = []
    read: list[int] = []
    for row in rows.tolist():
        try:
            ready.append(encoder.prepare(images.load(row)))
        except UnusableImageError as error:
            emit("message", text=f"left out {images.ids[row]}: {error}")
        else:
            read.append(row)
    return ready, read


def _images_at_once(encoder: Encoder, n_blocks: int) -> int:
    """As many images as keep the outputs of all blocks within the budget."""
    config = encoder.vit.config
    height, width = config.image_size
    tokens = (height // config.patch_size) * (width // config.patch_size) + encoder.vit.prefix
    return max(1, min(_MOST_IMAGES, _TOKEN_BYTES // (4 * tokens * config.dim * max(1, n_blocks))))


def small_pixels(images: Tensor) -> Tensor:
    """Pixels as features: ``(b, 3, H, W)`` averaged down to at most 32 on the longer side, flattened."""
    height, width = images.shape[2:]
    shrink = min(1.0, _MOST_PIXELS / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return F.adaptive_avg_pool2d(images, size).flatten(1).float()
