"""MIM-Refiner (ICLR 2025, arXiv 2402.10093): heads on the last blocks pull a masked-image encoder towards semantics.

Masked image modelling leaves an encoder whose middle blocks know most about content and whose last blocks serve the
reconstruction. Contrastive heads on all blocks of the last third take that off again, in two stages: the *head stage*
trains heads and fills their queues on a frozen encoder, the *refinement* trains encoder and heads together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from firstlight.core.distributed import gather, gather_with_gradient
from firstlight.losses.neighbour import neighbour_alignment
from firstlight.vision.heads import Head
from firstlight.vision.neighbour_queue import NeighbourQueue, Neighbours
from firstlight.vision.objective import ImageBatch, ParameterGroup, decay_groups
from firstlight.vision.refiner_config import (
    HeadPooling,
    HeadSpec,
    RefinerConfig,
    drawn_from,
    head_weight,
    head_widths,
    refined_specs,
)
from firstlight.vision.vit import ViT, pool

#: Views that teach: the global crops, which come first in a batch.
TEACHERS = 2

#: Share of the newest step in the running figures: they cover about the last hundred steps.
_NEWEST = 0.01


class NeighbourHead(nn.Module):
    """A head, its queue, and what is known of its neighbours."""

    figures: Tensor

    def __init__(self, dim: int, config: RefinerConfig, queue: int, rng: torch.Generator) -> None:
        super().__init__()
        widths = head_widths(config, dim)
        self.head = Head(dim, widths, rng)
        self.queue = NeighbourQueue(queue, widths.output, rng)
        #: Running means: cosine and age of the neighbours, share of images whose two crops have the same nearest.
        self.register_buffer("figures", torch.zeros(3))

    @torch.no_grad()
    def note(self, found: Neighbours, steps: Tensor) -> None:
        """Fold one look-up into the running figures; ``steps`` were folded in before."""
        same = (found.best[0] == found.best[1]).float().mean()
        new = torch.stack([found.similarity.mean(), found.ages.float().mean(), same])
        mean = gather(new[None]).mean(dim=0)
        self.figures.lerp_(mean, (1 / (steps + 1)).clamp(min=_NEWEST).to(mean))


class _Stage(nn.Module):
    """What both stages share: one pass of the encoder over each crop size, then every head's loss.

    Args:
        encoder: The encoder.
        config: The settings.
        specs: The heads.
        heads: As many modules as ``specs``.
        pooling: Which feature heads read.
    """

    steps: Tensor

    def __init__(
        self,
        encoder: ViT,
        config: RefinerConfig,
        specs: Sequence[HeadSpec],
        heads: Sequence[NeighbourHead],
        pooling: HeadPooling,
    ) -> None:
        super().__init__()
        self.encoder, self.config, self.specs, self.pooling = encoder, config, tuple(specs), pooling
        self.heads = nn.ModuleList(heads)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def features(self, views: Sequence[Tensor]) -> dict[int, Tensor]:
        """Pooled features of all views, view by view: row r is view r // b of image r % b.

        Args:
            views: ``(b, 3, h, w)`` each, the global crops first; the others are all of one size.

        Returns:
            Block → ``(views · b, dim)``; the encoder's depth stands for its final output.
        """
        blocks = sorted({spec.block for spec in self.specs})
        groups = [views[:TEACHERS], views[TEACHERS:]]
        parts = [self._run(torch.cat(list(group)), blocks) for group in groups if group]
        return {block: torch.cat([part[block] for part in parts]) for block in blocks}

    def _run(self, images: Tensor, blocks: Sequence[int]) -> dict[int, Tensor]:
        tokens = self.encoder.forward_intermediates(images, blocks)
        return {block: pool(found, self.encoder.prefix, self.pooling) for block, found in tokens.items()}

    def all_heads(self) -> list[NeighbourHead]:
        """The heads, in the order of ``specs``."""
        return [head for head in self.heads if isinstance(head, NeighbourHead)]

    @property
    def queue_size(self) -> int:
        """Entries of each head's queue."""
        return len(self.all_heads()[0].queue.vectors)

    def weights(self) -> list[float]:
        """Weight of each head's loss in the coming step."""
        return [1.0] * len(self.specs)

    def top_k(self) -> int:
        """How many nearest entries a neighbour is drawn from."""
        raise NotImplementedError

    def loss(self, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """One weighted nearest-neighbour alignment a head, named after it."""
        features = self.features(batch.views)
        losses = {}
        for spec, head, weight in zip(self.specs, self.all_heads(), self.weights(), strict=True):
            losses[spec.name] = weight * self._head_loss(spec, head, features[spec.block], batch, rng)
        return losses

    def _head_loss(
        self, spec: HeadSpec, head: NeighbourHead, features: Tensor, batch: ImageBatch, rng: torch.Generator
    ) -> Tensor:
        projections, predictions = head.head(features)
        shape = (len(batch.views), len(batch.rows), -1)
        teachers = projections.view(shape)[:TEACHERS].detach()
        found = head.queue.lookup(teachers, batch.rows, self.top_k(), rng)
        # Only after the look-up, so that no image finds what it just was; one view, so that images count once.
        head.queue.push(teachers[0], batch.rows)
        if self.training:
            head.note(found, self.steps)
        return neighbour_alignment(
            gather_with_gradient(predictions.view(shape), dim=1),
            teachers,
            found.vectors,
            spec.temperature,
            swap=self.config.swap,
            mode=self.config.pair_mode,
        )

    def after_step(self, step: int, total: int) -> None:
        """Count."""
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """Cosine, age and agreement of neighbours, each as a running mean, of every head."""
        names = ("similarity", "age", "agreement")
        table = [head.figures.tolist() for head in self.all_heads()]
        return {
            f"{spec.name}.{name}": value
            for spec, row in zip(self.specs, table, strict=True)
            for name, value in zip(names, row, strict=True)
        }

    def _head_groups(self) -> list[ParameterGroup]:
        return decay_groups("heads", [self.heads], weight_decay=self.config.head_weight_decay)


class HeadStage(_Stage):
    """Heads learn on a frozen encoder, without a graph through it, and their queues fill.

    Args:
        encoder: The encoder; no parameter of it moves.
        config: The settings.
        specs: The heads, from :func:`~firstlight.vision.refiner_config.head_specs`.
        queue: Entries of each queue.
        pooling: Which feature heads read.
        rng: Draws the heads' starts.
    """

    def __init__(
        self,
        encoder: ViT,
        config: RefinerConfig,
        specs: Sequence[HeadSpec],
        queue: int,
        pooling: HeadPooling,
        rng: torch.Generator,
    ) -> None:
        dim = encoder.config.dim
        heads = [NeighbourHead(dim, config, queue, rng) for _ in specs]
        super().__init__(encoder, config, specs, heads, pooling)

    @torch.no_grad()
    def _run(self, images: Tensor, blocks: Sequence[int]) -> dict[int, Tensor]:
        return super()._run(images, blocks)

    def top_k(self) -> int:
        """The k of this stage."""
        return self.config.head_top_k

    def parameter_groups(self) -> list[ParameterGroup]:
        """The heads alone."""
        return self._head_groups()

    def chosen_temperature(self) -> float:
        """τ for the refinement: the swept head on the final output whose neighbours agree most.

        How often two crops of an image find the same nearest image depends on neither the scale of the loss nor on
        labels, and is what refinement builds on. Heads of one temperature: that one.
        """
        depth = self.encoder.config.depth
        agreement = {
            spec.temperature: float(head.figures[2])
            for spec, head in zip(self.specs, self.all_heads(), strict=True)
            if spec.block == depth
        }
        return max(agreement, key=lambda temperature: agreement[temperature])


class RefineStage(_Stage):
    """Encoder and heads learn together, from the heads and queues of the head stage.

    Args:
        heads: The finished head stage; its encoder, heads and queues are taken over.
        temperature: τ of all heads from here on; of several heads on the final output, the one with this τ stays.

    Attributes:
        average: Running average of the encoder's weights, or None; never part of a forward pass.
    """

    share_done: Tensor

    def __init__(self, heads: HeadStage, temperature: float) -> None:
        config, encoder = heads.config, heads.encoder
        specs = refined_specs(heads.specs, encoder.config.depth, temperature)
        trained = heads.all_heads()
        super().__init__(
            encoder, config, list(specs.values()), [trained[place] for place in specs], heads.pooling
        )
        if config.freeze_blocks:
            encoder.freeze(config.freeze_blocks)
        encoder.checkpoint_activations = config.checkpoint_activations
        self.average = None if config.ema is None else copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("share_done", torch.zeros((), dtype=torch.float64))

    def weights(self) -> list[float]:
        """By the schedule; the head on the final output keeps weight 1."""
        # Constant ones need no look at ``share_done``, for which a GPU would have to come to rest.
        if self.config.head_weights == "constant":
            return super().weights()
        between = [spec for spec in self.specs if spec.block < self.encoder.config.depth]
        done = float(self.share_done)
        return [
            head_weight(self.config.head_weights, between.index(spec), len(between), done)
            if spec in between
            else 1.0
            for spec in self.specs
        ]

    def top_k(self) -> int:
        """The k of this stage."""
        return drawn_from(self.config, self.queue_size)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder by depth, lr_scale = d^(L − i) for block i, d^(L + 1) for the stem, 1 for norm and heads.

        Positions move only where they are a parameter (DINO, timm); those of MAE and its like are fixed.
        """
        return [*encoder_groups(self.encoder, self.config.layer_decay), *self._head_groups()]

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Average the weights; move the schedule of head weights on."""
        super().after_step(step, total)
        self.share_done.fill_((step + 1) / total)
        if self.average is None:
            return
        decay = self.config.ema
        assert decay is not None
        decay = min(0.9999, max(0.0, 1 - 10 / total)) if decay == "auto" else decay
        for mean, now in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, current in zip(self.average.buffers(), self.encoder.buffers(), strict=True):
            kept.copy_(current)

    def refined(self) -> ViT:
        """The encoder that refinement gives: the averaged one, where there is an average."""
        return self.encoder if self.average is None else self.average


def encoder_groups(encoder: ViT, decay: float) -> list[ParameterGroup]:
    """Parameter groups of an encoder with layer-wise learning rates; frozen parameters are in none."""
    depth, stem = encoder.config.depth, _Stem(encoder)
    groups = decay_groups("stem", [stem], lr_scale=decay ** (depth + 1))
    for index, block in enumerate(encoder.blocks):
        groups += decay_groups(f"block{index}", [block], lr_scale=decay ** (depth - index))
    return groups + decay_groups("norm", [encoder.norm])


class _Stem(nn.Module):
    """The parameters of an encoder before its first block, under their own names."""

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        for name in ("patch_embed", "embed_norm"):
            self.add_module(name, getattr(encoder, name))
        for name, parameter in encoder.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
