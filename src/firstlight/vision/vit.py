"""One plain vision transformer (Dosovitskiy et al., ICLR 2021), pre-norm or in the post-norm form of data2vec 2.0.

Parameter names are those of MAE and timm, so that their checkpoints differ from ours in little:
``patch_embed.proj``, ``cls_token``, ``reg_token``, ``pos_embed``, ``blocks.N.{norm1, attn.qkv, attn.proj, norm2,
mlp.fc1, mlp.fc2, ls1.gamma, ls2.gamma}``, then ``norm`` (pre-norm) or ``embed_norm`` (post-norm).

Tokens are ``(b, prefix + n, dim)``: the class token, registers, then patches row by row. Positions belong to patches
only; a checkpoint whose class token has one carries it inside the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from firstlight.vision.layers import Block, PatchEmbed, start_token, start_weights
from firstlight.vision.objective import uniform
from firstlight.vision.positions import resize_positions, sincos_positions
from firstlight.vision.vit_config import ViTConfig

__all__ = ["Pooling", "ViT", "ViTConfig", "pool"]

#: What :func:`pool` makes of tokens.
Pooling = Literal["class", "mean", "class+mean"]


def pool(tokens: Tensor, prefix: int, how: Pooling) -> Tensor:
    """One row an image.

    Args:
        tokens: ``(b, prefix + n, dim)``.
        prefix: Tokens before the patches.
        how: The class token, the mean of the patches, or both side by side.

    Returns:
        ``(b, dim)``, or ``(b, 2 · dim)`` for both.

    Raises:
        ValueError: There is no class token.
    """
    if how != "mean" and prefix == 0:
        raise ValueError(f"pooling {how!r} needs a class token, and this encoder has none")
    if how == "class":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(dim=1)
    return mean if how == "mean" else torch.cat([tokens[:, 0], mean], dim=1)


class ViT(nn.Module):
    """A vision transformer.

    Args:
        config: Its shape.
        rng: Stream of all starting weights (as in MAE: Xavier-uniform matrices, tokens of standard deviation .02,
            zero biases). None: the weights stay without memory, for ``load_state_dict(…, assign=True)``.

    Attributes:
        config: Its shape.
        prefix: Tokens before the patches.
        checkpoint_activations: Whether training keeps only the input of each block and computes the rest again.
    """

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: Tensor

    def __init__(self, config: ViTConfig, rng: torch.Generator | None) -> None:
        super().__init__()
        self.config = config
        self.prefix = int(config.class_token) + config.registers
        self.checkpoint_activations = False
        with torch.device("meta"):  # so that building draws nothing from the global generator
            self.patch_embed = PatchEmbed(config)
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim)) if config.class_token else None
            registers = config.registers
            self.reg_token = nn.Parameter(torch.empty(1, registers, config.dim)) if registers else None
            positions = torch.empty(1, config.grid[0] * config.grid[1], config.dim)
            if config.positions == "learned":
                self.pos_embed = nn.Parameter(positions)
            else:
                self.register_buffer("pos_embed", positions)
            self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
            norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
            self.embed_norm = norm if config.norm == "post" else nn.Identity()
            self.norm = norm if config.norm == "pre" and config.final_norm else nn.Identity()
        if rng is not None:
            self.to_empty(device="cpu")
            self._start(rng)

    def _start(self, rng: torch.Generator) -> None:
        start_weights(self, rng)
        learned = self.pos_embed if self.config.positions == "learned" else None
        for token in (self.cls_token, self.reg_token, learned):
            if token is not None:
                start_token(token, rng)
        if learned is None:
            self.pos_embed.copy_(sincos_positions(self.config.grid, self.config.dim)[None])

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of ``images`` ``(b, channels, H, W)``.

        Raises:
            ValueError: Patches do not tile such an image.
        """
        height, width = images.shape[-2:]
        size = self.config.patch_size
        if height % size or width % size or not height or not width:
            raise ValueError(f"patches of {size} px do not tile an image of {height} × {width} px")
        return height // size, width // size

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions for any grid, ``(1, rows · columns, dim)``: bicubic, as they are where the grid is the own one."""
        if grid == self.config.grid:
            return self.pos_embed
        return resize_positions(self.pos_embed, self.config.grid, grid)

    def embed(self, images: Tensor) -> Tensor:
        """``(b, channels, H, W)`` float images to ``(b, n, dim)`` patches with positions."""
        grid = self.grid(images)
        embedded: Tensor = self.patch_embed(images)
        return embedded + self.positions(grid)

    def with_prefix(self, patches: Tensor) -> Tensor:
        """Put class token and registers before any number of patches, ``(b, n, dim)``: what the first block reads."""
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            patches = torch.cat([*(token.expand(len(patches), -1, -1) for token in prefix), patches], dim=1)
        tokens: Tensor = self.embed_norm(patches)
        return tokens

    def run(
        self, tokens: Tensor, indices: Sequence[int] = (), rng: torch.Generator | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """All blocks.

        Args:
            tokens: ``(b, prefix + n, dim)`` from :meth:`with_prefix`.
            indices: Blocks (from 0) whose output is wanted too.
            rng: Stream of the dropped branches; None, or evaluation mode: none is dropped.

        Returns:
            The output of the last block, before :meth:`finish`, and block → its raw output.
        """
        return self._run(tokens, indices, rng, self.config.depth)

    def _run(
        self, tokens: Tensor, indices: Sequence[int], rng: torch.Generator | None, blocks: int
    ) -> tuple[Tensor, dict[int, Tensor]]:
        kept = self._kept(len(tokens), rng, tokens)
        found = {}
        for index in range(blocks):
            factors = None if kept is None else kept[index]
            if self.checkpoint_activations and torch.is_grad_enabled():
                # nothing in a block is random (its factors are arguments), so no generator has to be wound back
                tokens = checkpoint(
                    self.blocks[index], tokens, factors, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens = self.blocks[index](tokens, factors)
            if index in indices:
                found[index] = tokens
        return tokens, found

    def _kept(self, batch: int, rng: torch.Generator | None, like: Tensor) -> Tensor | None:
        """Factors of all branches, ``(depth, 2, b, 1, 1)``: 0 where dropped, else 1 / the chance of being kept."""
        if rng is None or not self.training or self.config.drop_path == 0:
            return None
        depth = self.config.depth
        keep = 1 - torch.linspace(0, self.config.drop_path, depth).view(-1, 1, 1)
        drawn = uniform(batch, 2 * depth, rng).T.reshape(depth, 2, batch)
        return ((drawn < keep) / keep)[..., None, None].to(like)

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm, where there is one."""
        normed: Tensor = self.norm(tokens)
        return normed

    def forward(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Tokens after the final norm.

        Args:
            images: ``(b, channels, H, W)`` float, normalised; any size that patches tile.
            rng: As in :meth:`run`.

        Returns:
            ``(b, prefix + n, dim)``.
        """
        return self.finish(self.run(self.with_prefix(self.embed(images)), rng=rng)[0])

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int], rng: torch.Generator | None = None
    ) -> dict[int, Tensor]:
        """Outputs of several blocks from one run of the encoder, which ends with the last block asked for.

        Args:
            images: As in :meth:`forward`.
            indices: Blocks from 0, for their raw outputs; ``depth``, for the final output after the final norm.
            rng: As in :meth:`run`.

        Returns:
            Index → ``(b, prefix + n, dim)``, in the order of ``indices``.

        Raises:
            ValueError: There is no such block.
        """
        depth = self.config.depth
        if not indices or not all(0 <= index <= depth for index in indices):
            raise ValueError(
                f"blocks are 0 to {depth - 1}, and {depth} the final output; got {list(indices)}"
            )
        last, found = self._run(
            self.with_prefix(self.embed(images)), indices, rng, min(max(indices) + 1, depth)
        )
        if depth in indices:
            found[depth] = self.finish(last)
        return {index: found[index] for index in indices}

    def freeze(self, blocks: int, stem: bool = True) -> None:
        """Take the first blocks out of training; no graph is recorded through them if the stem is frozen too.

        Args:
            blocks: How many blocks; all of them take the final norm along.
            stem: Whether patch embedding, tokens, positions and the norm before the blocks are frozen as well.
        """
        if not 0 <= blocks <= self.config.depth:
            raise ValueError(f"cannot freeze {blocks} of {self.config.depth} blocks")
        frozen: list[Any] = list(self.blocks[:blocks])
        if blocks == self.config.depth:
            frozen.append(self.norm)
        if stem:
            frozen += [self.patch_embed, self.embed_norm, self.cls_token, self.reg_token]
            frozen += [self.pos_embed] if self.config.positions == "learned" else []
        for part in frozen:
            if part is not None:
                part.requires_grad_(False)
