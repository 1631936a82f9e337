"""The config of ``refine``: crops, heads, and the length of both stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from firstlight.core.identity import ADDED_LATER
from firstlight.training.encoder_config import EncoderTrainingConfig
from firstlight.training.recipes import merge, override, read_recipe, validated
from firstlight.vision.crop_config import AreaShare, CropConfig, Size, multi_crop
from firstlight.vision.refiner_config import RefinerConfig
from firstlight.vision.vit_config import ViTConfig

#: The refinement stage where nobody says otherwise: the paper's for MAE, at a batch that fits one machine.
TRAINING: dict[str, Any] = {"epochs": 30, "batch_size": 256, "base_lr": 4e-4, "warmup_epochs": 4}


class MultiCropConfig(BaseModel):
    """Two global crops and several local ones of each image, with colours changed as in BYOL.

    The paper's ablations: ``n_local=0, scale=(.08, 1)`` are its two global crops alone, ``colours=False`` its minimal
    augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Size | None = None
    """Height and width of the global crops; None: the encoder's own."""

    local_size: Size | None = None
    """Height and width of the local crops; None: about 3/7 of the global ones, in whole patches (96 of 224 px at
    patch 16, 98 at patch 14)."""

    n_local: int = Field(10, ge=0)
    """Local crops an image."""

    scale: AreaShare = (0.25, 1.0)
    """Smallest and largest share of an image's area in a global crop."""

    local_scale: AreaShare = (0.05, 0.25)
    """Smallest and largest share of an image's area in a local crop."""

    blur: bool = True
    """Whether crops are blurred; at small sizes nothing would be left to see."""

    colours: Annotated[bool, ADDED_LATER] = True
    """Whether colours change, crops blur, lose their colours or are solarised; False leaves crop and mirror image."""

    def sizes(self, encoder: ViTConfig) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of global and of local crops.

        Raises:
            ValueError: Patches do not tile them.
        """
        patch, size = encoder.patch_size, self.size or encoder.image_size
        if self.local_size is None:
            height, width = (max(1, round(side * 3 / 7 / patch)) * patch for side in size)
            local = (height, width)
        else:
            local = self.local_size
        for height, width in (size, local):
            if height % patch or width % patch:
                raise ValueError(f"patches of {patch} px do not tile crops of {height} × {width} px")
        return size, local

    def crops(
        self, encoder: ViTConfig, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> CropConfig:
        """The crops for an encoder of this shape and these pixel statistics."""
        size, local = self.sizes(encoder)
        crops = multi_crop(
            size,
            local,
            n_local=self.n_local,
            global_scale=self.scale,
            local_scale=self.local_scale,
            blur=self.blur,
            colours=self.colours,
        )
        return crops.model_copy(update={"mean": mean, "std": std})


class HeadStageConfig(BaseModel):
    """The stage that trains heads alone; everything else is as in ``training``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1)
    """Times that every image is seen; cheap, since the encoder only runs forward."""

    base_lr: float = Field(2e-4, gt=0)
    """Peak learning rate for a batch of 256."""

    warmup_epochs: float = Field(4.0, ge=0)
    """Epochs of linear rise; never more than a fifth of ``epochs``."""


class RefineConfig(BaseModel):
    """Everything that decides a refinement, given images and encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Literal["encoder", "random"] = "encoder"
    """``random``: the control that throws the encoder's weights away and keeps its shape alone."""

    refiner: RefinerConfig = RefinerConfig()
    """Heads, queues and loss."""

    crops: MultiCropConfig = MultiCropConfig()
    """What becomes of an image."""

    heads: HeadStageConfig = HeadStageConfig()
    """Length of the head stage."""

    training: EncoderTrainingConfig = EncoderTrainingConfig(**TRAINING)
    """Length and steps of the refinement stage; batch, seed and machine of both."""

    @property
    def head_training(self) -> EncoderTrainingConfig:
        """Length and steps of the head stage."""
        return self.training.model_copy(update=dict(self.heads))


def build_refine_config(*, recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> RefineConfig:
    """A config from a recipe and single fields laid over it.

    Args:
        recipe: Name of a shipped recipe, or a path ending in ``.yaml``.
        overrides: ``key.path=value`` texts; values are YAML.

    Raises:
        InputError: A name or value is not valid; the message says which field and what would be.
    """
    tree: dict[str, Any] = {"training": dict(TRAINING)}
    merge(tree, {} if recipe is None else read_recipe(recipe, "refine"))
    for text in overrides:
        merge(tree, override(text))
    return validated(RefineConfig, tree, recipe)
