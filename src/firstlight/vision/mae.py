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
from firstlight.vision.layers import Block, start_token, start_weights
from firstlight.vision.objective import ImageBatch, ParameterGroup, decay_groups, uniform
from firstlight.vision.positions import sincos_positions
from firstlight.vision.vit import ViT
from firstlight.vision.vit_config import ViTConfig


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


class MAE(nn.Module):
    """The objective; see :class:`firstlight.vision.objective.Objective`.

    Args:
        config: Masking and decoder.
        encoder: What is trained; pre-norm or post-norm, with or without a class token.
        rng: Stream of the decoder's starting weights.
    """

    positions: Tensor

    def __init__(self, config: MAEConfig, encoder: ViT, rng: torch.Generator) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        shape = encoder.config
        decoder = ViTConfig(
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            norm_eps=shape.norm_eps,
        )
        with torch.device("meta"):  # so that building draws nothing from the global generator
            self.decoder_embed = nn.Linear(shape.dim, decoder.dim)
            self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.dim))
            self.decoder_blocks = nn.ModuleList([Block(decoder) for _ in range(decoder.depth)])
            self.decoder_norm = nn.LayerNorm(decoder.dim, eps=decoder.norm_eps)
            self.decoder_pred = nn.Linear(decoder.dim, shape.patch_size**2 * shape.channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            part.to_empty(device="cpu")
            start_weights(part, rng)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        start_token(self.mask_token.data, rng)
        self.register_buffer("positions", sincos_positions(shape.grid, decoder.dim)[None], persistent=False)

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
        return uniform(len(images), rows * columns, rng).argsort(dim=1).to(images.device)

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
        patches = encoder.embed(images)
        seen = patches.gather(1, order[:, :keep, None].expand(-1, -1, patches.shape[2]))
        tokens = encoder.finish(encoder.run(encoder.with_prefix(seen), rng=rng)[0])
        tokens = self.decoder_embed(tokens)
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

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and decoder, all at the run's rate; biases, norms and tokens without weight decay."""
        return decay_groups("mae", [self])

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
