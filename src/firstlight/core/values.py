"""Values as JSON takes them."""

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
