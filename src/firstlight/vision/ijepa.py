"""I-JEPA (Assran et al., CVPR 2023): from some patches, predict what a slow copy of the encoder makes of others.

No pixel is painted: targets are the copy's outputs for a few blocks of patches of the whole image. A narrow predictor
gets what the encoder makes of the patches of a large block less the targets, and one learned token with a position for
each target patch. Block shapes are drawn once a step, their places for each image.

Departures: an image whose context has more patches than another of its batch loses random ones, where the authors' code
drops the last ones, that is the lower edge of the image; weight decay does not grow during training.
"""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from firstlight.core.distributed import own_slice, world
from firstlight.vision.crop_config import AreaShare, Range
from firstlight.vision.masked import MaskedObjective
from firstlight.vision.objective import ImageBatch
from firstlight.vision.vit import ViT


class IJEPAConfig(BaseModel):
    """What is predicted from what; the defaults are the paper's but for the predictor's size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: int = Field(4, ge=1)
    """Blocks that are predicted."""

    target_scale: AreaShare = (0.15, 0.2)
    """Smallest and largest share of the patches in such a block."""

    target_ratio: Range = (0.75, 1.5)
    """Its smallest and largest height over width."""

    context_scale: AreaShare = (0.85, 1.0)
    """Share of the patches in the block that is seen, before the targets are cut out of it."""

    min_context: int = Field(10, ge=1)
    """Patches that are seen at least, even if some of them belong to a target."""

    predictor_dim: int = Field(96, ge=4)
    """Width of the predictor (paper: 384 for widths of 768 and more)."""

    predictor_depth: int = Field(4, ge=1)
    """Blocks of the predictor (paper: 6 for ViT-B/16, 12 above)."""

    predictor_heads: int = Field(3, ge=1)
    """Attention heads of the predictor."""

    momentum: float = Field(0.996, ge=0, le=1)
    """How much of the slow copy stays in a step at the start; it grows to 1 linearly."""

    crop_scale: AreaShare = (0.3, 1.0)
    """Smallest and largest share of an image's area that a crop takes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        dim, heads = self.predictor_dim, self.predictor_heads
        if dim % heads or dim % 4:
            raise ValueError(f"4 and the {heads} heads must divide predictor_dim {dim}")
        return self


def block_shape(
    grid: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: torch.Generator
) -> tuple[int, int]:
    """Height and width of a block of random area and aspect, in patches, at least 1 × 1 and at most the grid."""
    first, second = torch.rand(2, generator=rng).tolist()
    area = grid[0] * grid[1] * (scale[0] + (scale[1] - scale[0]) * first)
    aspect = ratio[0] + (ratio[1] - ratio[0]) * second
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), grid[0]), min(max(width, 1), grid[1])


def place_blocks(n: int, grid: tuple[int, int], shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """The patches of ``n`` blocks of one shape at uniform places, ``(n, height · width)`` int64."""
    room = torch.tensor([grid[0] - shape[0] + 1, grid[1] - shape[1] + 1])
    corner = (torch.rand(n, 2, generator=rng) * room).long()
    rows = corner[:, :1] + torch.arange(shape[0])
    columns = corner[:, 1:] + torch.arange(shape[1])
    return (rows[:, :, None] * grid[1] + columns[:, None]).flatten(1)


class IJEPA(MaskedObjective):
    """The objective; see :class:`firstlight.vision.objective.Objective`.

    Args:
        config: Blocks and predictor.
        encoder: What is trained; the paper's has no class token.
        rng: Stream of the predictor's starting weights.

    Attributes:
        target: The slow copy, which is also what is kept in the end.
    """

    name = "i-jepa"
    Config = IJEPAConfig
    class_token = False  # the predictor has no use for one
    flip = 0.0
    predictor_embed: nn.Linear
    predictor_blocks: nn.ModuleList
    predictor_norm: nn.LayerNorm
    predictor_proj: nn.Linear

    def __init__(self, config: IJEPAConfig, encoder: ViT, rng: torch.Generator) -> None:
        super().__init__(encoder)
        self.config = config
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        shape = config.predictor_dim, config.predictor_depth, config.predictor_heads
        self.add_narrow("predictor", "proj", shape, encoder.config.dim, rng)
        self.spread = torch.zeros(())

    def loss(self, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean smooth L1 distance between predictions and the slow copy's normed outputs.

        Args:
            batch: One view, of the encoder's own image size.
            rng: CPU stream of the step.
        """
        images = batch.views[0]
        context, targets = self.masks(len(images), self.encoder.grid(images), rng)
        context, targets = context.to(images.device), targets.to(images.device)
        with torch.no_grad():
            tokens = self.target(images)[:, self.encoder.prefix :].float()
            tokens = layer_norm(tokens, tokens.shape[-1:])
            self.spread = (
                tokens.flatten(0, 1).std(dim=0).mean()
            )  # read with the losses, or a GPU comes to rest
            wanted = tokens.gather(1, targets.flatten(1)[..., None].expand(-1, -1, tokens.shape[2]))
        predicted = self.predict(images, context, targets, rng)
        return {"prediction": smooth_l1_loss(predicted.float(), wanted.view(predicted.shape))}

    def masks(self, n: int, grid: tuple[int, int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is seen and what is predicted.

        Drawn for the whole batch and cut to this rank's part, since the largest context that all images have depends
        on all of them.

        Args:
            n: Images on this rank.
            grid: Rows and columns of patches.
            rng: CPU stream of the step.

        Returns:
            ``(n, k)`` patches that are seen, ``(n, targets, m)`` patches that are predicted.
        """
        config, own, total = self.config, own_slice(n * world()), n * world()
        shape = block_shape(grid, config.target_scale, config.target_ratio, rng)
        targets = torch.stack([place_blocks(total, grid, shape, rng) for _ in range(config.targets)], dim=1)
        large = block_shape(grid, config.context_scale, (1.0, 1.0), rng)
        # Ranks of patches: those of the context first, then those of no block, and of a target last of all.
        rank = torch.ones(total, grid[0] * grid[1])
        rank.scatter_(1, place_blocks(total, grid, large, rng), 0.0)
        rank.scatter_(1, targets.flatten(1), 2.0)
        common = int((rank == 0).sum(dim=1).min())
        keep = min(max(common, config.min_context), grid[0] * grid[1])
        order = (rank + torch.rand(rank.shape, generator=rng)).argsort(dim=1)
        return order[own, :keep], targets[own]

    def predict(
        self, images: Tensor, context: Tensor, targets: Tensor, rng: torch.Generator | None = None
    ) -> Tensor:
        """Predict the slow copy's outputs.

        Args:
            images: ``(b, channels, H, W)``.
            context: ``(b, k)`` patches that are seen.
            targets: ``(b, t, m)`` patches that are predicted, each block by itself.
            rng: Stream of the encoder's dropped branches.

        Returns:
            ``(b, t, m, dim)``.
        """
        b, t, m = targets.shape
        tokens = self.encode_visible(images, context, rng)[:, self.encoder.prefix :]
        places = self.positions[0]
        tokens = self.predictor_embed(tokens) + places[context]
        asked = self.mask_token + places[targets.flatten(0, 1)]
        both = torch.cat([tokens.repeat_interleave(t, dim=0), asked], dim=1)
        for block in self.predictor_blocks:
            both = block(both)
        found: Tensor = self.predictor_proj(self.predictor_norm(both[:, -m:]))
        return found.view(b, t, m, -1)

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Move the slow copy towards the encoder."""
        keep = self.config.momentum + (1 - self.config.momentum) * step / total
        for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)

    def figures(self) -> dict[str, float]:
        """``target_std``: how much targets differ within a batch; near 0 all images look alike to the copy."""
        return {"target_std": float(self.spread)}

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take over the weights of an encoder, in the slow copy too."""
        super().start_from(state)
        self.target.load_state_dict(state)

    def learned(self) -> ViT:
        """What the run is for: the slow copy, as in the paper."""
        return self.target
