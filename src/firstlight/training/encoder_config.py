"""Length and steps of an encoder's training, and the config of ``pretrain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from firstlight.core.errors import InputError
from firstlight.core.identity import ADDED_LATER
from firstlight.training.recipes import merge, override, read_recipe, validated
from firstlight.vision import OBJECTIVES
from firstlight.vision.crop_config import Size
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.ijepa import IJEPAConfig
from firstlight.vision.image_set import ImageSet
from firstlight.vision.mae import MAEConfig
from firstlight.vision.vit_config import ViTConfig

#: Images that are looked at to find the size of an encoder.
_LOOKED_AT = 64
#: Longest side of an encoder's images where nobody asked for another.
_LONGEST = 224
#: Patches above which larger ones are chosen, up to 16 px.
_MANY_PATCHES = 150


class EncoderTrainingConfig(BaseModel):
    """Length, steps and where they run; for pre-training and for both stages of refinement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    """Seed of every random stream of the run."""

    epochs: int = Field(100, ge=1)
    """Times that every image is seen (but for the last partial batch of an epoch, which is dropped)."""

    batch_size: int = Field(256, ge=2)
    """Images in a step, over all processes."""

    base_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW for a batch of 256; other batches scale it linearly."""

    warmup_epochs: float = Field(5.0, ge=0)
    """Epochs of linear rise; never more than a fifth of ``epochs``."""

    end_lr: float = Field(1e-6, ge=0)
    """What the cosine after the peak falls towards; does not scale with the batch."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decays."""

    weight_decay: float = Field(0.05, ge=0)
    """AdamW's decoupled weight decay on matrices, where the objective does not say otherwise."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: autocast. Pays on GPUs, and on processors with bf16 instructions (AVX512-BF16, AMX, ARM bf16)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; ``auto``: on a GPU if there is one."""

    threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves PyTorch's choice."""

    workers: int = Field(0, ge=0)
    """Processes that decode and augment, for images too large to be kept in memory."""

    cache_mb: int = Field(1024, ge=0)
    """Images that take at most so many megabytes decoded are decoded once, and augmented as tensors."""

    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints."""

    checkpoint_minutes: float = Field(10.0, gt=0)
    """Most minutes between checkpoints, which a long epoch gets in its middle."""

    @property
    def peak_lr(self) -> float:
        """The rate that the schedule peaks at."""
        return self.base_lr * self.batch_size / 256

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Updates of linear rise."""
        return round(min(self.warmup_epochs, self.epochs / 5) * steps_per_epoch)


class PretrainConfig(BaseModel):
    """Everything that decides a pre-training, given the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str = "mae"
    """A name of :data:`firstlight.vision.OBJECTIVES`. What is predicted from the visible patches: the pixels of the
    hidden ones (``mae``), or what a slowly moving copy of the encoder makes of them (``i-jepa``)."""

    encoder: ViTConfig
    """The encoder's shape. Where nothing is said, width 192, depth 12, three heads, a class token but for ``i-jepa``,
    and image and patch size by the images: their median size, at most 224 px, in about 60 to 200 patches."""

    mae: MAEConfig = MAEConfig()
    """Settings of ``mae``."""

    ijepa: IJEPAConfig = IJEPAConfig()
    """Settings of ``i-jepa``."""

    predictor_epochs: Annotated[int | None, Field(ge=0), ADDED_LATER] = None
    """Epochs in which only what predicts (MAE's decoder, I-JEPA's predictor) learns, on an encoder that stands still,
    before both do. One that has learned nothing yet shakes what the encoder knows: on imagenette64 fourteen epochs
    cost it 3.4 points of k-NN accuracy, and 1.3 with fourteen of these before. None: as many as ``training.epochs``
    where a run goes on from an encoder that came without it, else none."""

    training: EncoderTrainingConfig = EncoderTrainingConfig()
    """Length and steps."""

    @property
    def predictor_training(self) -> EncoderTrainingConfig:
        """Length and steps of the part in which only what predicts learns, where there is one."""
        epochs = self.training.epochs if self.predictor_epochs is None else max(1, self.predictor_epochs)
        return self.training.model_copy(update={"epochs": epochs})

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES.names():
            raise ValueError(f"there is no such objective; known: {', '.join(OBJECTIVES.names())}")
        return name

    @model_validator(mode="after")
    def _fits_images(self) -> Self:
        if self.encoder.channels != 3:
            raise ValueError(f"images have 3 channels, and the encoder {self.encoder.channels}")
        rows, columns = self.encoder.grid
        if rows * columns < 4:
            raise ValueError(f"{rows} × {columns} patches are too few to hide some of them")
        return self


def build_pretrain_config(
    images: ImageSet,
    *,
    recipe: str | Path | None = None,
    objective: str | None = None,
    overrides: Sequence[str] = (),
    start: ViTConfig | None = None,
) -> PretrainConfig:
    """The config of a run from a recipe, single fields laid over it, and what the images suggest.

    Args:
        images: What will be trained on.
        recipe: Name of a shipped recipe, or a path ending in ``.yaml``.
        objective: A name of :data:`firstlight.vision.OBJECTIVES`.
        overrides: ``key.path=value`` texts; values are YAML.
        start: Shape of the encoder that training goes on from.

    Raises:
        InputError: A name or value is not valid; the message says which field and what would be.
    """
    tree: dict[str, Any] = {} if recipe is None else read_recipe(recipe, "pretrain")
    if objective is not None:
        tree["objective"] = objective
    for text in overrides:
        merge(tree, override(text))
    given = tree.get("encoder", {})
    if not isinstance(given, Mapping):
        raise InputError(f"config field encoder: not a mapping (got {given!r})", path=recipe)
    encoder: dict[str, Any] = {"dim": 192, "depth": 12, "heads": 3}
    named = tree.get("objective", "mae")
    encoder["class_token"] = named not in OBJECTIVES.names() or OBJECTIVES.load(named).class_token
    if start is not None:
        encoder = start.model_dump(mode="json")
    merge(encoder, given)
    if not {"image_size", "patch_size"} <= encoder.keys():
        sizes = validated(_WithSizes, {"encoder": encoder}, recipe).encoder
        encoder = suggested_size(images, sizes.patch_size, sizes.image_size) | encoder
    return validated(PretrainConfig, tree | {"encoder": encoder}, recipe)


class _Sizes(BaseModel):
    """What is given of an encoder's sizes, before the rest is known."""

    image_size: Size | None = None
    patch_size: int | None = Field(None, ge=1)


class _WithSizes(BaseModel):
    encoder: _Sizes


def suggested_size(
    images: ImageSet, patch_size: int | None = None, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Image and patch size of an encoder for these images, by the median of some of them.

    Args:
        images: Not all are looked at.
        patch_size: The patch size, if it is fixed already.
        image_size: The image size, if it is fixed already.

    Raises:
        InputError: None of those looked at can be used.
    """
    sizes = [] if image_size is None else [image_size]
    if image_size is None:
        for row in range(0, len(images), max(1, len(images) // _LOOKED_AT)):
            try:
                image = images.load(row)
            except UnusableImageError:
                continue
            sizes.append((image.height, image.width))
        if not sizes:
            raise InputError("none of the images looked at can be used", path=images.source)
    height, width = (median(size[axis] for size in sizes) for axis in (0, 1))
    shrink = min(1.0, _LONGEST / max(height, width))
    if patch_size is None:
        area = height * width * shrink**2
        patch_size = next((size for size in (4, 8) if area / size**2 <= _MANY_PATCHES), 16)
    sides = [max(1, round(side * shrink / patch_size)) * patch_size for side in (height, width)]
    return {"image_size": sides, "patch_size": patch_size}
