"""Learning rates over the updates of a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """The rate of one update: up in ``warmup`` equal steps, then down a half cosine that never quite reaches ``end``.

    Args:
        step: 0-based.
        total: Updates in all.
        warmup: Updates of the rise; the peak is hit at ``step == warmup``.
        peak: Largest rate.
        end: What the cosine falls towards.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
