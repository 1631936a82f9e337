"""RandAugment (Cubuk et al., NeurIPS 2020) on Pillow, and random erasing (Zhong et al., AAAI 2020) on tensors.

Fourteen operations, identity among them, are drawn alike. A level from 0 to 1 says how strong one is; whether it goes
up or down, left or right, is drawn. Posterising keeps fewer bits at higher levels; in the code of MIM-Refiner's authors
it keeps more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Colour = tuple[int, int, int]
#: An image, a level from −1 to 1 whose sign is a direction, and the colour of what is uncovered.
Operation = Callable[[Image.Image, float, Colour], Image.Image]

#: Levels of the paper's scale.
_SCALE = 10.0
#: Smallest and largest share of an image that is erased, and height over width of the box.
_ERASED, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 3.3)
_TRIES = 10


def _moved(
    image: Image.Image, across: tuple[float, float, float], down: tuple[float, ...], fill: Colour
) -> Image.Image:
    """Each pixel from ``(across · (x, y, 1), down · (x, y, 1))``."""
    matrix = (*across, *down)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


#: By name. Enhancers go to a factor of 1 ± .9; rotation to 30°, shearing to .3, shifts to .45 of a side, solarising
#: down to a threshold of 0, posterising to 4 bits.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, level, fill: image,
    "autocontrast": lambda image, level, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, fill: ImageOps.equalize(image),
    "rotate": lambda image, level, fill: image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill),
    "solarize": lambda image, level, fill: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "posterize": lambda image, level, fill: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "color": lambda image, level, fill: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "contrast": lambda image, level, fill: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "brightness": lambda image, level, fill: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level, fill: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
    "shear-x": lambda image, level, fill: _moved(image, (1, 0.3 * level, 0), (0, 1, 0), fill),
    "shear-y": lambda image, level, fill: _moved(image, (1, 0, 0), (0.3 * level, 1, 0), fill),
    "translate-x": lambda image, level, fill: _moved(
        image, (1, 0, int(0.45 * level * image.width)), (0, 1, 0), fill
    ),
    "translate-y": lambda image, level, fill: _moved(
        image, (1, 0, 0), (0, 1, int(0.45 * level * image.height)), fill
    ),
}


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    operations: int = 2,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    fill: Colour = (0, 0, 0),
) -> Image.Image:
    """Apply some operations, drawn with replacement.

    Args:
        image: RGB.
        rng: Stream of this image in this epoch.
        operations: How many.
        magnitude: Mean level, from 0 to 10.
        deviation: Its standard deviation, on the same scale; what goes beyond 0 or 10 is cut off.
        fill: Colour of what is uncovered.

    Returns:
        RGB, of the same size.
    """
    table = list(OPERATIONS.values())
    for _ in range(operations):
        chosen, level = int(rng.integers(len(table))), rng.normal(magnitude, deviation) / _SCALE
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = table[chosen](image, sign * min(1.0, max(0.0, level)), fill)
    return image


def erase(image: Tensor, chance: float, rng: np.random.Generator) -> Tensor:
    """Fill a random box with noise of a standard deviation of one, or leave the image as it is.

    Args:
        image: ``(3, h, w)``, mean and standard deviation taken out.
        chance: How often.
        rng: Stream of this image in this epoch.

    Returns:
        A tensor of the same form; the given one is not changed.
    """
    if rng.random() >= chance:
        return image
    height, width = image.shape[1:]
    low, high = (math.log(end) for end in _ERASED_RATIO)
    for _ in range(_TRIES):
        area, ratio = rng.uniform(*_ERASED) * height * width, math.exp(rng.uniform(low, high))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tall < height and 0 < wide < width:
            top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
            noise = torch.from_numpy(rng.standard_normal((3, tall, wide), dtype=np.float32))
            image = image.clone()
            image[:, top : top + tall, left : left + wide] = noise
            return image
    return image
