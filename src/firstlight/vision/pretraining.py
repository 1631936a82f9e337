"""What every objective of pre-training is, beside an :class:`~firstlight.vision.objective.Objective`.

An objective is one file, one line in :data:`firstlight.vision.OBJECTIVES`, and one field of
:class:`firstlight.training.encoder_config.PretrainConfig` for its settings.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from firstlight.vision.crop_config import CropConfig, crop_and_flip
from firstlight.vision.objective import ImageBatch, ParameterGroup, decay_groups
from firstlight.vision.vit import ViT


class PretrainObjective(nn.Module):
    """An encoder and whatever learns beside it. A subclass is built as ``cls(config, encoder, rng)``.

    Args:
        encoder: What is trained.

    Attributes:
        name: As it is registered. Without hyphens it names the field of ``PretrainConfig`` that holds the settings.
        Config: Class of the settings; its ``crop_scale`` is the share of an image's area that a crop takes.
        class_token: Whether encoders get a class token where nobody says.
        flip: Chance that a crop is mirrored.
    """

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]]
    class_token: ClassVar[bool] = True
    flip: ClassVar[float] = 0.5

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.encoder = encoder

    @classmethod
    def settings(cls, config: BaseModel) -> Any:
        """The settings in a ``PretrainConfig``."""
        return getattr(config, cls.name.replace("-", ""))

    @classmethod
    def crops(cls, config: Any, image_size: tuple[int, int]) -> CropConfig:
        """What the objective sees of an image: one crop of the encoder's size, unless a subclass says otherwise."""
        return crop_and_flip(image_size, config.crop_scale, flip=cls.flip)

    def loss(self, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Named losses, already weighted; see :class:`firstlight.vision.objective.Objective`."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """All that is trained, at the run's rate; biases, norms and tokens without weight decay."""
        return decay_groups(self.name, [self])

    def after_step(self, step: int, total: int) -> None:
        """Nothing moves beside the gradients."""

    def figures(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take over the weights of an encoder."""
        self.encoder.load_state_dict(state)

    def learned(self) -> ViT:
        """What the run is for: the encoder."""
        return self.encoder
