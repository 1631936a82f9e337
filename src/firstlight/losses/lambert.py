"""The principal branch of Lambert's W, where W(y)·exp(W(y)) = y."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Halley's rule triples the correct digits a step; four steps reach float64 from these starts.
_STEPS = 4


def lambert_w(y: Tensor) -> Tensor:
    """Principal Lambert W of ``y``, exact to float64 rounding away from the branch point.

    The released Adap-τ looks W up in a table of ten million entries (40 MB) without interpolation; this is
    Halley's rule from branch-wise starting points.

    Args:
        y: Any shape; values below −1/e are treated as −1/e (the loss clamps there, paper §4.2).

    Returns:
        float64 tensor of the same shape, in ``[-1, inf)``.
    """
    y = y.to(torch.float64).clamp(min=-1 / math.e)
    # Near the branch point a series in p = sqrt(2(ey + 1)); in the middle log1p; far out log y - log log y.
    p = (2 * (math.e * y + 1)).clamp(min=0).sqrt()
    near = -1 + p - p**2 / 3 + 11 * p**3 / 72
    middle = torch.log1p(y.clamp(min=-0.2))
    log = y.clamp(min=math.e).log()
    far = log - log.log()
    w = torch.where(y < -0.2, near, torch.where(y < math.e, middle, far))
    for _ in range(_STEPS):
        exp = w.exp()
        error = w * exp - y
        # At the branch point the slope vanishes: there the series start is exact and the step must be zero.
        slope = exp * (w + 1) - (w + 2) * error / (2 * w + 2).clamp(min=1e-12)
        step = error / slope.where(slope.abs() > 1e-300, torch.ones_like(slope))
        w = torch.where(p < 1e-7, near, w - step)
    return w
