"""How much memory a refinement needs, before it starts: enough to choose the knobs."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.vision.heads import head_parameters
from firstlight.vision.layers import WRITTEN_OUT
from firstlight.vision.refiner_config import HeadSpec, RefinerConfig, head_widths
from firstlight.vision.vit_config import ViTConfig

#: What helps, in the order in which it is cheap for quality.
KNOBS = (
    "refiner.checkpoint_activations=true",
    "refiner.freeze_blocks",
    "fewer local crops",
    "refiner.heads (a number)",
    "a smaller batch",
)

#: Values kept for the backward pass, in widths of a token, per token and block: inputs of qkv, of attention (q, k, v),
#: of proj, of fc1, of GELU (4) and of fc2 (4).
_KEPT_PER_BLOCK = 14

#: Inputs of both norms, which stay in single precision, as what is passed from block to block does.
_NORMS_PER_BLOCK = 2

#: What the one block takes that is computed again and differentiated (measured), in the same unit.
_RECOMPUTED = 64

_SINGLE, _HALF = 4, 2  # bytes


def encoder_parameters(vit: ViTConfig) -> int:
    """Number of parameters of an encoder, norms and tokens left out: they are a thousandth."""
    block = 4 * vit.dim**2 + 2 * round(vit.mlp_ratio * vit.dim) * vit.dim
    return vit.depth * block + vit.channels * vit.patch_size**2 * vit.dim


def tokens_per_image(vit: ViTConfig, sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of all crops of an image, given each crop's height and width."""
    prefix = int(vit.class_token) + vit.registers
    return sum(prefix + (height // vit.patch_size) * (width // vit.patch_size) for height, width in sizes)


def memory_estimate(
    vit: ViTConfig,
    config: RefinerConfig,
    specs: Sequence[HeadSpec],
    sizes: Sequence[tuple[int, int]],
    *,
    batch: int,
    ranks: int = 1,
    queue: int,
    half: bool = False,
    on_gpu: bool = True,
) -> dict[str, int]:
    """Bytes a process needs in the refinement stage, the larger one.

    Args:
        vit: The encoder's shape.
        config: The settings.
        specs: The heads.
        sizes: Height and width of each crop of an image.
        batch: Images in a step, over all ranks.
        ranks: Processes that share the batch.
        queue: Entries of each queue.
        half: Whether products run in bfloat16.
        on_gpu: Whether they run on a GPU; on a CPU, bfloat16 keeps the weights of attention.

    Returns:
        Part → bytes: ``encoder`` and ``heads`` (weights, gradients, AdamW's moments, the average, and rounded weights
        if ``half``), ``activations``, ``head activations``, ``queues`` (with the scores of a look-up) and ``logits``.
    """
    widths, own = head_widths(config, vit.dim), batch // ranks
    tokens, rows, value = own * tokens_per_image(vit, sizes), own * len(sizes), _HALF if half else _SINGLE
    trained = vit.depth - config.freeze_blocks
    if config.checkpoint_activations:
        kept = trained * _SINGLE + _RECOMPUTED * value
    else:
        kept = trained * (_KEPT_PER_BLOCK * value + _NORMS_PER_BLOCK * _SINGLE)
    weighed = 0
    if half and not on_gpu:
        squares = sum(n**2 for n in (tokens_per_image(vit, [size]) for size in sizes) if n <= WRITTEN_OUT)
        weighed = own * squares * vit.heads * _HALF * (1 if config.checkpoint_activations else trained)
    copies = 1 + (config.ema is not None) + 3 * trained / vit.depth
    rounded = _HALF * trained / vit.depth if half else 0
    heads = len(specs)
    per_row = vit.dim + 6 * widths.projector + 3 * widths.predictor + 5 * widths.output
    return {
        "encoder": round((copies * _SINGLE + rounded) * encoder_parameters(vit)),
        "heads": 4 * heads * head_parameters(vit.dim, widths) * _SINGLE,
        "activations": tokens * vit.dim * kept + weighed,
        "head activations": heads * rows * per_row * _SINGLE,
        "queues": ((heads + 1) * queue * widths.output + 2 * own * queue) * _SINGLE,
        "logits": 2 * heads * 2 * own * len(sizes) * batch * _SINGLE,
    }
