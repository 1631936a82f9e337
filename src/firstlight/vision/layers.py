"""What a vision transformer is built from, and how its weights start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from firstlight.vision.vit_config import ViTConfig


class LayerScale(nn.Module):
    """A learned factor a channel."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """``x · γ``."""
        return x * self.gamma


#: Up to this many tokens attention on a CPU in bfloat16 is written out.
WRITTEN_OUT = 1024


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention by whatever is fastest on the tensors' device.

    PyTorch's fused kernel for bfloat16 on CPUs takes two to thirteen times as long as two products and a softmax, most
    of all backward and for the few tokens of small images and crops
    (``benchmarks/encoder_step.py --precision bfloat16``). Written out, the weights of a layer are kept, ``b · heads ·
    n²`` numbers, and scores are rounded to bfloat16: relative errors of about 6e-3 in place of 3e-3.

    Args:
        q: ``(b, heads, n, d)``.
        k: The same shape.
        v: The same shape.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= WRITTEN_OUT:
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1) @ v
    return scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention of all tokens of an image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n, dim)`` to the same; rows of ``qkv`` are q, k, v, and heads within each."""
        b, n, dim = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(q, k, v).transpose(1, 2).reshape(b, n, dim)
        projected: Tensor = self.proj(mixed)
        return projected


class MLP(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, dim)`` to the same."""
        out: Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each on a branch beside the tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.post = config.norm == "post"
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLP(config.dim, round(config.dim * config.mlp_ratio))
        scale = config.layer_scale
        self.ls1 = nn.Identity() if scale is None else LayerScale(config.dim, scale)
        self.ls2 = nn.Identity() if scale is None else LayerScale(config.dim, scale)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            x: ``(b, n, dim)``.
            kept: ``(2, b, 1, 1)`` factors of the two branches for each image (drop path); None: 1.
        """
        if self.post:
            x = self.norm1(x + _weighted(self.ls1(self.attn(x)), kept, 0))
            out: Tensor = self.norm2(x + _weighted(self.ls2(self.mlp(x)), kept, 1))
            return out
        x = x + _weighted(self.ls1(self.attn(self.norm1(x))), kept, 0)
        return x + _weighted(self.ls2(self.mlp(self.norm2(x))), kept, 1)


def _weighted(branch: Tensor, kept: Tensor | None, which: int) -> Tensor:
    return branch if kept is None else branch * kept[which]


class PatchEmbed(nn.Module):
    """Pixels of a patch to a token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.channels, config.dim, size, stride=size)

    def forward(self, images: Tensor) -> Tensor:
        """``(b, channels, H, W)`` to ``(b, n, dim)``: the convolution, as one matrix product (faster on a CPU)."""
        b, channels, height, width = images.shape
        size = self.proj.kernel_size[0]
        cells = images.reshape(b, channels, height // size, size, width // size, size).permute(
            0, 2, 4, 1, 3, 5
        )
        return linear(
            cells.reshape(b, -1, channels * size * size), self.proj.weight.flatten(1), self.proj.bias
        )


@torch.no_grad()
def start_weights(module: nn.Module, rng: torch.Generator) -> None:
    """Draw all matrices inside ``module`` as MAE does: Xavier-uniform (a convolution counts as one matrix), no bias.

    Norms become the identity. Single parameters such as tokens are left to their owners.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1), generator=rng)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, LayerScale):
            part.gamma.fill_(part.start)


@torch.no_grad()
def start_token(token: Tensor, rng: torch.Generator) -> None:
    """Draw a token, or learned positions: normal with standard deviation .02, within two of them."""
    nn.init.trunc_normal_(token, std=0.02, a=-0.04, b=0.04, generator=rng)
