"""Values as JSON takes them, and as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """``value`` with everything that JSON lacks replaced: NaN and infinity by null, paths by strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, polars series have to_list
        return plain(value.tolist())
    if hasattr(value, "to_list"):
        return plain(value.to_list())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def text(value: Any) -> str:
    """A value as people read it: four decimals, thousands apart, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.4f}" if abs(value) < 1e4 and (abs(value) >= 1e-3 or value == 0) else f"{value:.3g}"
    return str(value)
