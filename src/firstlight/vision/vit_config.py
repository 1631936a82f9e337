"""Shape of a vision transformer; light to import, since configs of training hold it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ViTConfig(BaseModel):
    """Shape of a :class:`ViT`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int]
    """Height and width in pixels that the positions were made for; images of other sizes get interpolated ones."""

    patch_size: int = Field(ge=1)
    """Side of a patch in pixels; it divides both sides of every image."""

    channels: int = Field(3, ge=1)
    """Channels of the images."""

    dim: int = Field(ge=1)
    """Width D of a token."""

    depth: int = Field(ge=1)
    """Number of blocks."""

    heads: int = Field(ge=1)
    """Attention heads; they divide ``dim``."""

    mlp_ratio: float = Field(4.0, gt=0)
    """Width of the hidden layer of a block's MLP, in widths of a token."""

    class_token: bool = True
    """Whether a learned token that no patch feeds stands first; I-JEPA has none."""

    registers: int = Field(0, ge=0)
    """Further such tokens behind it (Darcet et al., ICLR 2024), dropped from every pooling."""

    norm: Literal["pre", "post"] = "pre"
    """``pre``: x += f(norm(x)); ``post`` (data2vec 2.0): x = norm(x + f(x)), and one norm before the first block."""

    final_norm: bool = True
    """Whether a layer norm follows the last block; pre-norm only."""

    norm_eps: float = Field(1e-6, gt=0)
    """ε of every layer norm; 1e-6 in MAE and timm, 1e-12 in Hugging Face's ViT."""

    layer_scale: float | None = None
    """Start of a learned factor on each channel of both branches (CaiT, DINOv2); None: no such factor."""

    drop_path: float = Field(0.0, ge=0, lt=1)
    """Chance that training skips a branch of the last block for an image; it grows from 0 linearly with depth."""

    positions: Literal["sincos", "learned"] = "sincos"
    """``sincos``: fixed, by sines and cosines of both coordinates as in MAE, or whatever a checkpoint holds in their
    place; ``learned``: a parameter."""

    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.image_size) < 1 or any(side % self.patch_size for side in self.image_size):
            raise ValueError(f"patches of {self.patch_size} px do not tile an image of {self.image_size} px")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.dim}")
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError("positions by sines and cosines need a width that 4 divides")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at ``image_size``."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size
