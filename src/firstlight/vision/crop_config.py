"""What an image becomes before the encoder sees it; light to import, since configs of training hold it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

#: Mean and standard deviation of ImageNet's pixels, a channel.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Chance = Field(0.0, ge=0, le=1)


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if not 0 < low <= high:
        raise ValueError("must be (low, high) with 0 < low <= high")
    return ends


def _within_one(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[1] > 1:
        raise ValueError("a share must be at most 1")
    return shares


#: Two positive ends of a range.
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
#: A range of shares of an image's area.
AreaShare = Annotated[Range, AfterValidator(_within_one)]
#: Height and width in pixels.
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class ViewConfig(BaseModel):
    """One kind of crop and what is done to it, in this order (MIM-Refiner's, after BYOL)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Size
    """Height and width in pixels."""

    count: int = Field(1, ge=1)
    """Crops of this kind an image."""

    scale: AreaShare = (0.2, 1.0)
    """Smallest and largest share of the image's area."""

    ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest aspect of the crop, as a multiple of the aspect of ``size``."""

    flip: float = Field(0.5, ge=0, le=1)
    """Chance of a mirror image."""

    jitter: float = Chance
    """Chance that brightness, contrast, saturation and hue change, in random order."""

    brightness: float = Field(0.4, ge=0)
    """Largest change of the factor on brightness."""

    contrast: float = Field(0.4, ge=0)
    """Largest change of the factor on contrast."""

    saturation: float = Field(0.2, ge=0)
    """Largest change of the factor on saturation."""

    hue: float = Field(0.1, ge=0, le=0.5)
    """Largest shift of the hue, in turns."""

    blur: float = Chance
    """Chance of a Gaussian blur."""

    blur_sigma: Range = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""

    grey: float = Chance
    """Chance that the colours go; after the blur."""

    solarise: float = Chance
    """Chance that values from 128 on are turned into their complement."""


class CropConfig(BaseModel):
    """All crops of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: tuple[ViewConfig, ...] = Field(min_length=1)
    """Kinds of crops, in the order in which the objective gets them."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from pixels in [0, 1], a channel."""

    std: tuple[float, float, float] = IMAGENET_STD
    """What is left is divided by it."""

    @property
    def crops(self) -> list[ViewConfig]:
        """One entry a crop."""
        return [view for view in self.views for _ in range(view.count)]


def crop_and_flip(
    size: tuple[int, int], scale: tuple[float, float] = (0.2, 1.0), *, flip: float = 0.5
) -> CropConfig:
    """One crop, mirrored half the time: what MAE trains on (I-JEPA: never mirrored)."""
    return CropConfig(views=(ViewConfig(size=size, scale=scale, flip=flip),))


def multi_crop(
    size: tuple[int, int],
    local_size: tuple[int, int],
    *,
    n_local: int = 10,
    global_scale: tuple[float, float] = (0.25, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.25),
    blur: bool = True,
    colours: bool = True,
) -> CropConfig:
    """Two global and ``n_local`` local crops as MIM-Refiner draws them.

    Args:
        size: Height and width of the global crops.
        local_size: Height and width of the local ones.
        n_local: Local crops an image; may be 0.
        global_scale: Area shares of the global crops.
        local_scale: Area shares of the local crops.
        blur: Whether anything is blurred; at 32 px a blur leaves nothing to see.
        colours: False: crops and mirror images alone, the minimal augmentation of the paper's ablation.
    """

    def view(
        side: tuple[int, int], scale: tuple[float, float], blurred: float, solarised: float, n: int
    ) -> ViewConfig:
        if not colours:
            return ViewConfig(size=side, count=n, scale=scale)
        return ViewConfig(
            size=side,
            count=n,
            scale=scale,
            jitter=0.8,
            blur=blurred if blur else 0.0,
            grey=0.2,
            solarise=solarised,
        )

    views = [view(size, global_scale, 1.0, 0.0, 1), view(size, global_scale, 0.1, 0.2, 1)]
    if n_local:
        views.append(view(local_size, local_scale, 0.5, 0.0, n_local))
    return CropConfig(views=tuple(views))
