"""Masked autoencoders (He et al., CVPR 2022): see a quarter of the patches, paint the rest.

The encoder runs on the visible patches alone. A small decoder gets its output and one learned token for each hidden
patch, all with their positions, and predicts the hidden patches' pixels. The order of tokens means nothing to
attention, so nothing is put back in place: hidden patches simply stand last.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from firstlight.vision.crop_config import AreaShare
from firstlight.vision.masked import MaskedObjective
from firstlight.vision.objective import ImageBatch, uniform
from firstlight.vision.vit import ViT


class MAEConfig(BaseModel):
    """What is hidden, and what paints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that is hidden; at least one stays, and at least one goes."""

    decoder_dim: int = Field(96, ge=4)
    """Width of the decoder. The paper's 512 belongs to widths of 768 and more; about half the encoder's is enough."""

    decoder_depth: int = Field(2, ge=1)
    """Blocks of the decoder (paper: 8; its analysis of single blocks: 2)."""

    decoder_heads: int = Field(3, ge=1)
    """Attention heads of the decoder."""

    norm_pix_loss: bool = True
    """Predict each patch less its mean, over its standard deviation; better features than bare pixels."""

    crop_scale: AreaShare = (0.2, 1.0)
    """Smallest and largest share of an image's area that a crop takes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ValueError(
                f"4 and the {self.decoder_heads} heads must divide decoder_dim {self.decoder_dim}"
            )
        return self


def patchify(images: Tensor, size: int) -> Tensor:
    """``(b, channels, H, W)`` to ``(b, n, size² · channels)``: patches row by row, pixels before channels."""
    b, channels, height, width = images.shape
    cells = images.view(b, channels, height // size, size, width // size, size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * channels)


def normalised(patches: Tensor) -> Tensor:
    """Each patch less its mean, over its (unbiased) standard deviation."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


class MAE(MaskedObjective):
    """The objective; see :class:`firstlight.vision.objective.Objective`.

    Args:
        config: Masking and decoder.
        encoder: What is trained; pre-norm or post-norm, with or without a class token.
        rng: Stream of the decoder's starting weights.
    """

    name = "mae"
    Config = MAEConfig
    decoder_embed: nn.Linear
    decoder_blocks: nn.ModuleList
    decoder_norm: nn.LayerNorm
    decoder_pred: nn.Linear

    def __init__(self, config: MAEConfig, encoder: ViT, rng: torch.Generator) -> None:
        super().__init__(encoder)
        self.config = config
        shape = config.decoder_dim, config.decoder_depth, config.decoder_heads
        pixels = encoder.config.patch_size**2 * encoder.config.channels
        self.add_narrow("decoder", "pred", shape, pixels, rng)

    def loss(self, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean over hidden patches of the mean squared error of their pixels.

        Args:
            batch: One view, of the encoder's own image size.
            rng: CPU stream of the step.
        """
        images = batch.views[0]
        order = self.shuffle(images, rng)
        predicted, hidden = self.reconstruct(images, order, rng)
        target = patchify(images, self.encoder.config.patch_size)
        target = target.gather(1, hidden[..., None].expand(-1, -1, target.shape[2]))
        if self.config.norm_pix_loss:
            target = normalised(target)
        return {"reconstruction": (predicted.to(target.dtype) - target).square().mean()}

    def shuffle(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """A random order of each image's patches, ``(b, n)`` int64; the first ones are the visible ones."""
        rows, columns = self.encoder.grid(images)
        return uniform(len(images), rows * columns, rng).to(images.device).argsort(dim=1)

    def visible(self, n: int) -> int:
        """How many of ``n`` patches are visible."""
        return min(n - 1, max(1, round(n * (1 - self.config.mask_ratio))))

    def reconstruct(
        self, images: Tensor, order: Tensor, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the hidden patches.

        Args:
            images: ``(b, channels, H, W)``.
            order: ``(b, n)`` from :meth:`shuffle`.
            rng: Stream of the encoder's dropped branches.

        Returns:
            ``(b, hidden, size² · channels)`` predictions, and ``(b, hidden)`` which patches they are.
        """
        encoder, keep = self.encoder, self.visible(order.shape[1])
        tokens = self.decoder_embed(self.encode_visible(images, order[:, :keep], rng))
        places = self.positions[0][order]
        tokens = torch.cat(
            [
                tokens[:, : encoder.prefix],
                tokens[:, encoder.prefix :] + places[:, :keep],
                self.mask_token + places[:, keep:],
            ],
            dim=1,
        )
        for block in self.decoder_blocks:
            tokens = block(tokens)
        painted = self.decoder_pred(self.decoder_norm(tokens[:, encoder.prefix + keep :]))
        return painted, order[:, keep:]
