"""Where a patch is: fixed positions, and positions brought to another grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions of MAE (He et al., CVPR 2022): the first half of the channels tells the column, the second the row.

    Args:
        grid: Rows and columns of patches.
        dim: Width; a multiple of 4.

    Returns:
        ``(rows · columns, dim)`` float32, row by row.
    """
    rows, columns = grid
    frequency = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encoded(n: int) -> Tensor:
        angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    column = encoded(columns)[None].expand(rows, -1, -1)
    row = encoded(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=2).reshape(rows * columns, dim).float()


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of ``(1, rows · columns, dim)`` positions between grids (no antialiasing)."""
    if old == new:
        return positions
    image = positions.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = interpolate(image, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(positions.dtype)
