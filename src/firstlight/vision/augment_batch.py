"""The crops of :mod:`firstlight.vision.augment` for many images at once, as products of small matrices.

Resizing and blurring are linear in each direction, so a crop is ``A · image · Bᵀ`` with matrices that hold the box,
the bicubic filter (antialiased as Pillow's), the mirror and the edges. At 64 px this takes a tenth of Pillow's time and
runs where the images are, on a GPU too. Nothing is rounded to bytes on the way.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from firstlight.vision.augment import SOLARISE_FROM, Draws, FloatArray, draw
from firstlight.vision.crop_config import CropConfig

#: Luma of ITU-R 601, as Pillow turns colours into grey.
_LUMA = (0.299, 0.587, 0.114)
#: Box filters that stand for a Gaussian in Pillow.
_PASSES = 3


def crops_batch(pixels: Tensor, sizes: Tensor, config: CropConfig, uniforms: FloatArray) -> list[Tensor]:
    """All crops of ``b`` images.

    Args:
        pixels: ``(b, H, 3, W)`` uint8; image i fills ``pixels[i, : sizes[i, 0], :, : sizes[i, 1]]``.
        sizes: ``(b, 2)`` int64 heights and widths, on the CPU.
        config: Which crops.
        uniforms: ``(b, crops, UNIFORMS)`` in [0, 1): what decides the crops of each image.

    Returns:
        One ``(b, 3, h, w)`` float32 tensor a crop, where ``pixels`` are.
    """
    values = pixels.float() / 255
    mean = torch.tensor(config.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=pixels.device).view(1, 3, 1, 1)
    found: dict[int, Tensor] = {}
    # Crops of one size go through colours and blur together: a step on a GPU is made of fewer, larger pieces.
    for size in {view.size: None for view in config.crops}:
        places = [place for place, view in enumerate(config.crops) if view.size == size]
        drawn = [draw(config.crops[place], uniforms[:, place], sizes.numpy()) for place in places]
        images = torch.cat([_resized(values, size, one) for one in drawn])
        _colours(images, Draws.joined(drawn))
        found |= zip(places, ((images - mean) / std).chunk(len(places)), strict=True)
    return [found[place] for place in range(len(config.crops))]


def _resized(values: Tensor, size: tuple[int, int], drawn: Draws) -> Tensor:
    """Cut out, resized and mirrored, ``(b, 3, h, w)``."""
    box, flip = torch.from_numpy(drawn.box).to(values.device), torch.from_numpy(drawn.flip).to(values.device)
    down = resize_matrix(box[:, 0], box[:, 2], values.shape[1], size[0])
    across = resize_matrix(box[:, 1], box[:, 3], values.shape[3], size[1])
    return _apply(values, down, torch.where(flip[:, None, None], across.flip(1), across))


def _colours(images: Tensor, drawn: Draws) -> None:
    """Change colours, blur, turn grey and solarise, in place."""
    _jitter(images, drawn)
    blurred = np.flatnonzero(drawn.sigma)
    if len(blurred):
        at = torch.from_numpy(blurred).to(images.device)
        sigma = torch.from_numpy(drawn.sigma[blurred])
        down, across = (blur_matrix(sigma, side).float().to(images.device) for side in images.shape[2:])
        images[at] = _apply(images[at].transpose(1, 2), down, across)
    if drawn.grey.any():
        at = torch.from_numpy(np.flatnonzero(drawn.grey)).to(images.device)
        images[at] = grey(images[at]).expand(-1, 3, -1, -1)
    if drawn.solarise.any():
        at = torch.from_numpy(np.flatnonzero(drawn.solarise)).to(images.device)
        part = images[at]
        images[at] = torch.where(part * 255 < SOLARISE_FROM - 0.5, part, 1 - part)


def _apply(values: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """``(b, H, 3, W)`` to ``(b, 3, h, w)`` within [0, 1]: ``down`` ``(b, h, H)`` and ``across`` ``(b, w, W)``."""
    b, height, channels, _ = values.shape
    # Pillow, too, goes across first and cuts off in between what the filter throws beyond black and white.
    rows = (values.reshape(b, height * channels, -1) @ across.transpose(1, 2)).clamp_(0, 1)
    both = (down @ rows.view(b, height, -1)).clamp_(0, 1).view(b, -1, channels, across.shape[1])
    return both.transpose(1, 2).contiguous()


def resize_matrix(start: Tensor, length: Tensor, side: int, out: int) -> Tensor:
    """Bicubic resizing along one direction, each image by its own box, antialiased where it shrinks.

    Args:
        start: ``(b,)`` first pixel of the box.
        length: ``(b,)`` its pixels, on the same device.
        side: Pixels that there are.
        out: Pixels wanted.

    Returns:
        ``(b, out, side)`` float32; each row sums to 1 and is 0 outside the box.
    """
    begin, step = start.float()[:, None, None], (length.float() / out)[:, None, None]
    centre = begin + (torch.arange(out, device=start.device)[:, None] + 0.5) * step
    pixel = torch.arange(side, device=start.device)
    distance = (pixel + 0.5 - centre).abs_().div_(step.clamp(min=1))
    square = distance * distance
    near = (1.5 * distance - 2.5) * square + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights *= (pixel >= begin) & (pixel < begin + length[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """Pillow's Gaussian blur along one direction: three box filters whose variances add up, edges repeated.

    Args:
        sigma: ``(b,)`` standard deviations in pixels, above 0.
        side: Pixels.

    Returns:
        ``(b, side, side)`` float64; each row sums to 1.
    """
    variance = sigma.double() ** 2 / _PASSES
    whole = torch.floor((torch.sqrt(12 * variance + 1) - 1) / 2)
    # The box holds 2·whole + 1 full pixels and a share of one more on either side, to have exactly this variance.
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    share = share / (6 * (variance - (whole + 1) ** 2))
    radius = (whole + share)[:, None, None]
    reach = int(whole.max()) + 1
    place = torch.arange(-reach, side + reach)
    distance = (torch.arange(side)[:, None] - place).abs()
    weights = (radius + 1 - distance).clamp(0, 1) / (2 * radius + 1)
    once = torch.zeros(len(sigma), side, side, dtype=torch.float64)
    once.index_add_(2, place.clamp(0, side - 1), weights)
    return torch.matrix_power(once, _PASSES)


def grey(images: Tensor) -> Tensor:
    """``(b, 3, h, w)`` to ``(b, 1, h, w)``."""
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(dim=1, keepdim=True)


def _jitter(images: Tensor, drawn: Draws) -> None:
    """Change brightness, contrast, saturation and hue in place, each image in its own order."""
    factors = torch.from_numpy(drawn.factors).float().to(images.device)
    for turn in range(4):
        for which in range(4):
            rows = np.flatnonzero(drawn.jitter & (drawn.order[:, turn] == which))
            if len(rows):
                at = torch.from_numpy(rows).to(images.device)
                images[at] = _changed(images[at], which, factors[at, which].view(-1, 1, 1, 1))


def _changed(images: Tensor, which: int, factor: Tensor) -> Tensor:
    if which == 3:
        return turn_hue(images, factor[:, 0])
    if which == 0:
        changed = images * factor
    elif which == 1:
        middle = grey(images).mean(dim=(2, 3), keepdim=True)
        changed = middle + (images - middle) * factor
    else:
        pale = grey(images)
        changed = pale + (images - pale) * factor
    return changed.clamp(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue at equal saturation and value.

    Args:
        images: ``(b, 3, h, w)`` in [0, 1].
        turns: ``(b, 1, 1)`` shift in turns of the colour circle.
    """
    high, low = images.amax(dim=1), images.amin(dim=1)
    spread = high - low
    red, green, blue = ((high - channel) / spread.clamp(min=1e-12) for channel in images.unbind(1))
    hue = torch.where(
        images[:, 0] == high,
        blue - green,
        torch.where(images[:, 1] == high, 2 + red - blue, 4 + green - red),
    )
    hue = torch.where(spread > 0, hue, 0.0) + 6 * turns
    channels = []
    for offset in (5, 3, 1):  # each channel falls off from its own side of the circle
        sector = (hue + offset) % 6
        channels.append(high - spread * torch.minimum(sector, 4 - sector).clamp(0, 1))
    return torch.stack(channels, dim=1)
