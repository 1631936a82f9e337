"""Settings of MIM-Refiner, and what follows from them: where heads sit, their temperature, their weight over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from firstlight.losses.neighbour import PairMode, Swap
from firstlight.vision.heads import WIDTHS, WidthName, Widths

#: How the weights of the intermediate heads fall during refinement; the head on the last output keeps weight 1.
HeadWeights = Literal["constant", "uniform-decay", "staggered-decay", "staggered-step", "one-hot"]

#: Feature that heads read.
HeadPooling = Literal["class", "mean"]

#: Factors on the default temperature that ``temperature: auto`` tries, each with a head of its own.
SWEEP = (0.75, 0.875, 1.0, 1.125, 1.25)


class RefinerConfig(BaseModel):
    """Everything of MIM-Refiner but data and length of training; the defaults are the paper's for ViT-L/16."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: Literal["auto"] | Annotated[int, Field(ge=1)] | tuple[int, ...] = "auto"
    """Where heads sit. One is always on the encoder's final output. ``auto``: besides, one on each block of about
    the last third (8 heads for depth 24, 12 for depth 32). A number: so many heads, from the end; 1 is the control
    with a single head. A list: these 0-based blocks, for example [15, 19]."""

    pooling: Literal["encoder", "class", "mean"] = "encoder"
    """Feature that heads read: class token or mean of the patches; ``encoder`` takes what the encoder names."""

    widths: WidthName | None = None
    """Widths of projector, predictor and output: ``base`` 2048/4096/256 (paper), ``tiny`` 1024/2048/128, ``micro``
    256/512/128, ``debug`` 16/32/4. None: base from an encoder's width of 768 on, tiny from 384 on, else micro."""

    queue_size: int | None = Field(None, ge=2)
    """Entries of a head's queue Q. None: 65,536 (paper), and never more than a third of the images, since beyond it
    a neighbour is often an older copy of another crop of what the batch holds."""

    temperature: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """τ. None: .2, .3 from width 1280 on, .35 from 2560 on (paper). ``auto``: five heads on the final output train
    with .75 to 1.25 times that, and the one whose neighbours agree most between the two global crops of an image
    gives τ (no label needed)."""

    head_top_k: int = Field(1, ge=1)
    """k of the head stage: the neighbour is drawn among the k nearest entries of the queue."""

    top_k: int | None = Field(None, ge=1)
    """k of the refinement stage. None: 20 (paper), and at most a 512th of the queue: beyond it, the k nearest of a
    small queue are no neighbours any more."""

    pair_mode: PairMode = "paper"
    """``paper``: both global crops teach every other crop. ``released``: the pairs of the authors' code, whose index
    slip pairs global crops with themselves and drops the last two local crops."""

    swap: Swap = "positive"
    """What the neighbour replaces: the ``positive`` alone (paper), the whole row (``all``, NNCLR), nothing
    (``none``, plain InfoNCE)."""

    head_weights: HeadWeights = "constant"
    """Weights of the intermediate heads during refinement (ablations of the paper)."""

    head_weight_decay: float = Field(1e-5, ge=0)
    """AdamW's weight decay on the heads' matrices, in both stages; the encoder's is ``training.weight_decay``."""

    layer_decay: float = Field(0.65, gt=0, le=1)
    """Learning rates fall by this factor a block towards the input; 1 leaves them equal."""

    freeze_blocks: int = Field(0, ge=0)
    """So many first blocks, and the stem with them, stay as they are (the 2B model: 6 of 24)."""

    checkpoint_activations: bool = False
    """Recompute the blocks in the backward pass: a third more time, a fraction of the memory."""

    ema: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] | None = "auto"
    """Decay of the running average of the encoder's weights, which is what refinement returns. The paper's .9999
    needs tens of thousands of updates; ``auto`` averages over about the last tenth of the updates, at most the
    paper's. None: the weights as they are."""


class HeadSpec(NamedTuple):
    """One head.

    Attributes:
        name: ``main``, ``block10``, or ``main-0.25`` during a sweep.
        block: 0-based block whose raw output it reads; the encoder's depth for the final output.
        temperature: τ of its loss.
    """

    name: str
    block: int
    temperature: float


def head_blocks(heads: Literal["auto"] | int | tuple[int, ...], depth: int) -> list[int]:
    """Blocks that carry heads beside the final output, ascending.

    Raises:
        ValueError: A block does not exist, or is the last one, which the final output stands for.
    """
    if heads == "auto":
        third: int = min(depth, {24: 8, 32: 12}.get(depth, max(2, round(depth / 3))))
        heads = third
    if isinstance(heads, int):
        heads = tuple(range(depth - heads, depth - 1))
    if len(set(heads)) != len(heads) or any(not 0 <= block < depth - 1 for block in heads):
        raise ValueError(
            f"heads need different blocks from 0 to {depth - 2}, got {sorted(heads)}; "
            f"the last block's head is always there"
        )
    return sorted(heads)


def default_temperature(dim: int) -> float:
    """τ by the encoder's width, as the paper has it for ViT-L, ViT-H and ViT-2B."""
    return 0.35 if dim >= 2560 else 0.3 if dim >= 1280 else 0.2


def head_specs(config: RefinerConfig, dim: int, depth: int) -> list[HeadSpec]:
    """The heads of the head stage, by depth; those of a sweep last."""
    temperature = config.temperature
    base = temperature if isinstance(temperature, float) else default_temperature(dim)
    specs = [HeadSpec(f"block{block}", block, base) for block in head_blocks(config.heads, depth)]
    if temperature != "auto":
        return [*specs, HeadSpec("main", depth, base)]
    taus = [round(base * factor, 6) for factor in SWEEP]
    return [*specs, *(HeadSpec(f"main-{tau:g}", depth, tau) for tau in taus)]


def refined_specs(specs: Sequence[HeadSpec], depth: int, temperature: float) -> dict[int, HeadSpec]:
    """The heads of the refinement stage: all at one τ, and one on the final output, the one trained with that τ.

    Returns:
        Place among ``specs`` → what the head is from now on.
    """
    return {
        place: HeadSpec("main" if spec.block == depth else spec.name, spec.block, temperature)
        for place, spec in enumerate(specs)
        if spec.block < depth or spec.temperature == temperature
    }


def queue_size(config: RefinerConfig, images: int, batch: int) -> int:
    """Entries of each queue.

    Args:
        config: The settings.
        images: Images in the data.
        batch: Images in a step, over all ranks.

    Raises:
        ValueError: A batch does not fit.
    """
    size = config.queue_size or min(65536, images // 3)
    if size < batch:
        raise ValueError(f"a batch of {batch:,} images does not fit a queue of {size:,} ({images:,} images)")
    return size


def drawn_from(config: RefinerConfig, queue: int) -> int:
    """The k of the refinement stage, for a queue of so many entries."""
    return max(1, min(20, queue // 512)) if config.top_k is None else config.top_k


def head_weight(schedule: HeadWeights, order: int, count: int, done: float) -> float:
    """Weight of an intermediate head's loss.

    The paper's ablations run 20 epochs with seven intermediate heads whose breaks are epochs 4, 6, … 16; here the
    breaks are the same shares of training, spread evenly over the heads there are.

    Args:
        schedule: The kind.
        order: 0 for the earliest block with a head.
        count: Number of intermediate heads.
        done: Share of the stage's updates that are done, from 0 to 1.
    """
    if schedule == "constant":
        return 1.0
    breaks = [0.2 + 0.6 * i / max(1, count - 1) for i in range(count)]
    end = breaks[0] if schedule == "uniform-decay" else breaks[order]
    if schedule == "one-hot":
        begin = breaks[order - 1] if order else 0.0
        return 0.1 if done < begin else 1.0 if done < end else 0.0
    if done < end:
        return 1.0
    return 0.0 if schedule == "staggered-step" else (1 + math.cos(math.pi * (done - end) / (1 - end))) / 2


def head_widths(config: RefinerConfig, dim: int) -> Widths:
    """Layer widths of every head on an encoder of width ``dim``."""
    fitting: WidthName = "base" if dim >= 768 else "tiny" if dim >= 384 else "micro"
    return WIDTHS[config.widths or fitting]
