"""Random crops of an image: the numbers that decide them, and the crops on Pillow.

Every crop is a function of 36 uniform numbers. :func:`draw` turns them into a box, factors and switches, for one image
or for many at once, so that the form on Pillow here and the form on tensors
(:mod:`firstlight.vision.augment_batch`) make the same crop of the same image up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from firstlight.vision.crop_config import CropConfig, ViewConfig

FloatArray = npt.NDArray[np.float64]

#: Boxes that are tried before the largest one in the middle is taken.
TRIES = 10
#: Uniform numbers a crop.
UNIFORMS = 2 * TRIES + 16
#: Values from here on are turned by solarising.
SOLARISE_FROM = 128


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of ``n`` images.

    Attributes:
        box: ``(n, 4)`` int64: top, left, height, width.
        flip: ``(n,)`` bool.
        jitter: ``(n,)`` bool.
        order: ``(n, 4)`` int64: the order of brightness (0), contrast (1), saturation (2), hue (3).
        factors: ``(n, 4)``: factors of the first three, and the shift of the hue in turns.
        sigma: ``(n,)``: standard deviation of the blur, 0 without.
        grey: ``(n,)`` bool.
        solarise: ``(n,)`` bool.
    """

    box: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    jitter: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    factors: FloatArray
    sigma: FloatArray
    grey: npt.NDArray[np.bool_]
    solarise: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """What happens to several sets of images, one set after the other."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


def draw(view: ViewConfig, uniforms: FloatArray, sizes: npt.NDArray[np.int64]) -> Draws:
    """Decide one crop of each image.

    Args:
        view: The kind of crop.
        uniforms: ``(n, UNIFORMS)`` in [0, 1).
        sizes: ``(n, 2)`` height and width of the images.
    """
    rest = uniforms[:, 2 * TRIES + 2 :]
    strengths = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    low = np.concatenate([np.maximum(0, 1 - strengths[:3]), -strengths[3:]])
    high = np.concatenate([1 + strengths[:3], strengths[3:]])
    first, last = view.blur_sigma
    return Draws(
        box=_boxes(view, uniforms[:, : 2 * TRIES + 2], sizes),
        flip=rest[:, 0] < view.flip,
        jitter=rest[:, 1] < view.jitter,
        order=np.argsort(rest[:, 2:6], axis=1),
        factors=low + (high - low) * rest[:, 6:10],
        sigma=np.where(rest[:, 10] < view.blur, first + (last - first) * rest[:, 11], 0.0),
        grey=rest[:, 12] < view.grey,
        solarise=rest[:, 13] < view.solarise,
    )


def _boxes(view: ViewConfig, uniforms: FloatArray, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Boxes of random area and aspect that lie inside, ``(n, 4)``; the largest in the middle where no try fits."""
    height, width = sizes[:, :1], sizes[:, 1:]
    aspect = view.size[1] / view.size[0]
    area = (view.scale[0] + (view.scale[1] - view.scale[0]) * uniforms[:, :TRIES]) * height * width
    bounds = np.log(np.array(view.ratio) * aspect)
    ratio = np.exp(bounds[0] + (bounds[1] - bounds[0]) * uniforms[:, TRIES : 2 * TRIES])
    tall, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    at = np.argmax(fits, axis=1)
    each = np.arange(len(sizes))
    found = np.stack([tall[each, at], wide[each, at]], axis=1)
    room = sizes - found + 1
    corner = np.floor(uniforms[:, 2 * TRIES :] * room)
    held = np.clip(
        sizes[:, 1] / sizes[:, 0], *np.exp(bounds)
    )  # the nearest allowed aspect to the image's own
    largest = np.stack([np.minimum(sizes[:, 0], np.rint(sizes[:, 1] / held)),
                        np.minimum(sizes[:, 1], np.rint(sizes[:, 0] * held))], axis=1)  # fmt: skip
    largest = np.maximum(largest, 1)
    any_fits = fits.any(axis=1)[:, None]
    size = np.where(any_fits, found, largest)
    corner = np.where(any_fits, corner, (sizes - largest) // 2)
    return np.concatenate([corner, size], axis=1).astype(np.int64)


def crops(image: Image.Image, config: CropConfig, uniforms: FloatArray) -> list[Tensor]:
    """All crops of an image, on Pillow.

    Args:
        image: RGB.
        config: Which crops.
        uniforms: ``(crops, UNIFORMS)`` in [0, 1), of this image in this epoch.

    Returns:
        One ``(3, h, w)`` float32 tensor a crop.
    """
    return [to_tensor(made, config.mean, config.std) for made in crop_images(image, config, uniforms)]


def crop_images(image: Image.Image, config: CropConfig, uniforms: FloatArray) -> list[Image.Image]:
    """The crops of :func:`crops` as pictures, for those who do more to them."""
    sizes = np.array([[image.height, image.width]])
    return [
        _crop(image, view, draw(view, drawn[None], sizes))
        for view, drawn in zip(config.crops, uniforms, strict=True)
    ]


def to_tensor(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """An RGB picture as ``(3, h, w)`` float32, in [0, 1] before mean and standard deviation are taken out."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    centre, spread = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return ((pixels / 255 - centre) / spread).contiguous()


def _crop(image: Image.Image, view: ViewConfig, drawn: Draws) -> Image.Image:
    top, left, height, width = drawn.box[0].tolist()
    part = image.crop((left, top, left + width, top + height))
    part = part.resize((view.size[1], view.size[0]), Image.Resampling.BICUBIC)
    if drawn.flip[0]:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if drawn.jitter[0]:
        for which in drawn.order[0].tolist():
            part = _jitter(part, which, float(drawn.factors[0, which]))
    if drawn.sigma[0] > 0:
        part = part.filter(ImageFilter.GaussianBlur(float(drawn.sigma[0])))
    if drawn.grey[0]:
        part = part.convert("L").convert("RGB")
    return ImageOps.solarize(part, SOLARISE_FROM) if drawn.solarise[0] else part


def _jitter(image: Image.Image, which: int, factor: float) -> Image.Image:
    if which == 0:
        return ImageEnhance.Brightness(image).enhance(factor)
    if which == 1:
        return ImageEnhance.Contrast(image).enhance(factor)
    if which == 2:
        return ImageEnhance.Color(image).enhance(factor)
    shift = round(factor * 255)
    if shift == 0:  # the way to HSV and back is not free of loss
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + shift) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
