"""From named tensors to a transformer: its shape read off the weights, positions folded and brought onto a grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.vision.checkpoints.layouts import Renamed
from firstlight.vision.positions import sincos_positions
from firstlight.vision.vit_config import ViTConfig

#: Heads of the widths whose models do not have heads of 64 channels.
_HEADS = {1280: 16, 1408: 16, 2560: 32}


@dataclass(frozen=True)
class Hints:
    """What stands beside the weights and cannot be read off them.

    Attributes:
        heads: Attention heads.
        eps: ε of the layer norms.
        image_size: Height and width that the positions are for.
    """

    heads: int | None = None
    eps: float | None = None
    image_size: tuple[int, int] | None = None


def read_shape(
    renamed: Renamed, hints: Hints, path: Path, notes: list[str]
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Config of the transformer that fits the tensors, and its state.

    Args:
        renamed: Tensors under our names.
        hints: What is known besides.
        path: For messages.
        notes: Gets a sentence for everything that was changed or assumed.

    Raises:
        InputError: Something that every vision transformer has is missing, or the shapes do not fit together.
    """
    for name, tensor in renamed.tensors.items():
        if tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided:
            kind = "complex" if tensor.is_complex() else "quantised or sparse"
            raise InputError(
                f"{name} holds {kind} numbers ({tensor.dtype}), which are not supported", path=path
            )
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in renamed.tensors.items()}
    needed = ["patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight"]
    if missing := [name for name in needed if name not in state]:
        raise InputError(
            f"no vision transformer of a known kind: {', '.join(missing)} missing, as {renamed.layout.name} names it",
            path=path,
        )
    kernel, hidden = state["patch_embed.proj.weight"], state["blocks.0.mlp.fc1.weight"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or hidden.ndim != 2:
        raise InputError(f"patches of {tuple(kernel.shape)} are not square pictures", path=path)
    dim, channels, size = kernel.shape[:3]
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if not state[name].numel():
            raise InputError(f"{name} is empty: it has the shape {tuple(state[name].shape)}", path=path)
    for name in ("pos_embed", "cls_token", "reg_token"):
        if name in state and (state[name].ndim < 3 or state[name].shape[-1] != dim):
            shape = tuple(state[name].shape)
            raise InputError(f"{name} has the shape {shape}, which does not fit a width of {dim}", path=path)
    out = state.get("blocks.0.mlp.fc2.weight")
    if out is not None and out.shape[-1] != len(hidden):
        raise InputError("the blocks have a gated MLP (SwiGLU), which is not supported", path=path)
    post = renamed.layout.norm == "post" or "embed_norm.weight" in state
    if not post and "norm.weight" not in state and "norm.bias" not in state and renamed.lacks_norm:
        state["norm.weight"], state["norm.bias"] = torch.ones(dim), torch.zeros(dim)
        notes.append("the file has no final norm (CrossMAE): it starts with weight 1 and bias 0")
    grid = _place_positions(state, size, hints, path, notes)
    fixed = renamed.layout.fixed_positions or _is_sincos(state["pos_embed"], grid)
    if dim % 4:
        fixed = False
    config = ViTConfig(
        image_size=(grid[0] * size, grid[1] * size),
        patch_size=size,
        channels=channels,
        dim=dim,
        depth=_depth(state, path),
        heads=_heads(dim, hints, path, notes),
        mlp_ratio=len(hidden) / dim,
        class_token="cls_token" in state,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        norm="post" if post else "pre",
        norm_eps=hints.eps or renamed.layout.eps,
        layer_scale=1.0 if "blocks.0.ls1.gamma" in state else None,
        positions="sincos" if fixed else "learned",
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )
    return config, state


def _depth(state: dict[str, Tensor], path: Path) -> int:
    """Number of blocks; their numbers must leave no gap."""
    found = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    if found != set(range(len(found))):
        gap = min(set(range(len(found))) - found)
        raise InputError(f"block {gap} is missing, but there are later ones", path=path)
    return len(found)


def _heads(dim: int, hints: Hints, path: Path, notes: list[str]) -> int:
    """Attention heads: shapes do not tell them, but all published models of a width agree."""
    heads = hints.heads or _HEADS.get(dim)
    if heads is None and dim % 64 == 0:
        heads = dim // 64
    if heads is None or heads < 1 or dim % heads:
        problem = "cannot be told from the weights" if heads is None else f"cannot be {heads}"
        raise InputError(
            f"the number of attention heads at width {dim} {problem}",
            path=path,
            hint="say it in Python: save_encoder(folder, load_encoder(path, heads=…)), then use the folder",
        )
    if hints.heads is None:
        notes.append(f"{heads} attention heads, as published models of width {dim} have")
    return heads


def _place_positions(
    state: dict[str, Tensor], size: int, hints: Hints, path: Path, notes: list[str]
) -> tuple[int, int]:
    """Leave positions of patches only in ``state``, ``(1, n, dim)``, and give the grid they are for.

    A row of the class token is folded into that token, to which it would be added anyway.
    """
    positions = state["pos_embed"]
    if positions.ndim == 4:  # (1, rows, columns, dim)
        grid = (positions.shape[1], positions.shape[2])
        state["pos_embed"] = positions.flatten(1, 2)
        return grid
    if positions.ndim != 3 or len(positions) != 1:
        raise InputError(f"positions have the shape {tuple(positions.shape)}", path=path)
    rows = positions.shape[1]
    grids = [hints.image_size] if hints.image_size is not None else []
    choices = [(height // size, width // size) for height, width in grids]
    choices += [(math.isqrt(n), math.isqrt(n)) for n in (rows, rows - 1) if n > 0 and math.isqrt(n) ** 2 == n]
    for grid in choices:
        extra = rows - grid[0] * grid[1]
        if extra == 0:
            return grid
        if extra == 1 and "cls_token" in state:
            own = positions[:, :1]
            state["cls_token"] = state["cls_token"] + own
            state["pos_embed"] = positions[:, 1:].contiguous()
            if own.any():
                notes.append("the class token's position is now part of the token")
            return grid
    raise InputError(f"{rows} positions are no square of patches, with or without a class token", path=path)


def _is_sincos(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Whether positions are the fixed ones of MAE, or of MoCo v3, which counts columns first."""
    if positions.shape[-1] % 4:
        return False
    table = sincos_positions(grid, positions.shape[-1])
    turned = sincos_positions((grid[1], grid[0]), positions.shape[-1]).reshape(grid[1], grid[0], -1)
    return any(
        torch.allclose(positions[0], known, atol=1e-4)
        for known in (table, turned.transpose(0, 1).reshape_as(table))
    )
