"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of a batch of images and their classes.

Each image meets the one at the mirrored place of the batch, and one share is drawn for the whole batch.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

#: Top, left, bottom, right, in pixels.
Box = tuple[int, int, int, int]


def mixup(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend every image with its partner.

    Args:
        images: ``(b, 3, h, w)``.
        targets: ``(b, classes)`` probabilities.
        share: How much of an image stays.

    Returns:
        Both, blended.
    """
    return _blend(images, share), _blend(targets, share)


def cutmix(images: Tensor, targets: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Put a box of its partner into every image; targets are blended by area.

    Args:
        images: ``(b, 3, h, w)``.
        targets: ``(b, classes)`` probabilities.
        box: What comes from the partner.

    Returns:
        Both, mixed; the given images are not changed.
    """
    top, left, bottom, right = box
    height, width = images.shape[2:]
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, _blend(targets, 1 - (bottom - top) * (right - left) / (height * width))


def mix(
    images: Tensor, targets: Tensor, rng: np.random.Generator, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor]:
    """One of the two, by chance alike; the only one whose α is above 0; or neither.

    Args:
        images: ``(b, 3, h, w)``.
        targets: ``(b, classes)`` probabilities.
        rng: Stream of this step.
        mixup_alpha: α of mixup: the share that stays is drawn from Beta(α, α).
        cutmix_alpha: α of CutMix.

    Returns:
        Both, mixed.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    cut = cutmix_alpha > 0 and (mixup_alpha <= 0 or rng.random() < 0.5)
    alpha = cutmix_alpha if cut else mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return mixup(images, targets, share)
    return cutmix(images, targets, cut_box(images.shape[2], images.shape[3], share, rng))


def cut_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """A box of the image's aspect about a uniform centre, cut off at the edges.

    Args:
        height: Of the image.
        width: Of the image.
        share: What is outside the box before edges cut it off.
        rng: Stream of this step.
    """
    scale = math.sqrt(1 - share)
    tall, wide = int(height * scale), int(width * scale)
    top, left = int(rng.integers(height)) - tall // 2, int(rng.integers(width)) - wide // 2
    return max(0, top), max(0, left), min(height, top + tall), min(width, left + wide)


def _blend(values: Tensor, share: float) -> Tensor:
    return values * share + values.flip(0) * (1 - share)
