"""What MAE and I-JEPA share: an encoder that sees some patches, and a narrow transformer that predicts the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from firstlight.vision.layers import Block, start_token, start_weights
from firstlight.vision.positions import sincos_positions
from firstlight.vision.pretraining import PretrainObjective
from firstlight.vision.vit_config import ViTConfig


class MaskedObjective(PretrainObjective):
    """An encoder, and beside it what predicts hidden patches from visible ones.

    What predicts has four parts: ``NAME_embed`` (encoder's width to its own), ``NAME_blocks``, ``NAME_norm``, and a
    last layer to what is predicted; and ``mask_token``, which stands for a hidden patch, and fixed ``positions``.

    Args:
        encoder: What is trained.
    """

    mask_token: nn.Parameter
    positions: Tensor

    def add_narrow(
        self, name: str, last: str, shape: tuple[int, int, int], outputs: int, rng: torch.Generator
    ) -> None:
        """Register the parts and draw their starts, in a fixed order.

        Args:
            name: Before the parts' names.
            last: Name of the last layer.
            shape: Width, depth and attention heads.
            outputs: Numbers predicted of a patch.
            rng: Stream of the starting weights.
        """
        whole = self.encoder.config
        dim, depth, heads = shape
        narrow = ViTConfig(
            image_size=whole.image_size,
            patch_size=whole.patch_size,
            dim=dim,
            depth=depth,
            heads=heads,
            norm_eps=whole.norm_eps,
        )
        with torch.device("meta"):  # so that building draws nothing from the global generator
            parts = {
                f"{name}_embed": nn.Linear(whole.dim, dim),
                f"{name}_blocks": nn.ModuleList([Block(narrow) for _ in range(depth)]),
                f"{name}_norm": nn.LayerNorm(dim, eps=narrow.norm_eps),
                f"{name}_{last}": nn.Linear(dim, outputs),
            }
        for key, part in parts.items():
            part.to_empty(device="cpu")
            start_weights(part, rng)
            self.add_module(key, part)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        start_token(self.mask_token.data, rng)
        self.register_buffer("positions", sincos_positions(whole.grid, dim)[None], persistent=False)

    def encode_visible(self, images: Tensor, visible: Tensor, rng: torch.Generator | None) -> Tensor:
        """Run the encoder on some patches alone.

        Args:
            images: ``(b, channels, H, W)``.
            visible: ``(b, k)`` which patches.
            rng: Stream of the encoder's dropped branches.

        Returns:
            ``(b, prefix + k, dim)`` after the final norm.
        """
        patches = self.encoder.embed(images)
        seen = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[2]))
        return self.encoder.finish(self.encoder.run(self.encoder.with_prefix(seen), rng=rng)[0])
