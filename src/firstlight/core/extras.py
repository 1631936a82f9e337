"""Optional libraries, imported only where they are used."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from firstlight.core.errors import MissingExtraError

#: extra name -> (import name, what it is for)
EXTRAS: dict[str, tuple[str, str]] = {
    "plot": ("matplotlib", "pictures of curves, popularity groups and temperatures"),
    "text": ("sentence_transformers", "texts through a sentence encoder"),
    "video": ("av", "clips"),
    "ann": ("faiss", "approximate neighbours"),
    "serve": ("uvicorn", "the HTTP API and its page"),
}


def require(extra: str) -> ModuleType:
    """Import the library behind an extra, or say how to get it.

    Args:
        extra: A key of :data:`EXTRAS`, for example ``"plot"``.

    Returns:
        The imported top-level module.

    Raises:
        MissingExtraError: The library is not installed.
    """
    module, purpose = EXTRAS[extra]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed for {purpose}; install it with: pip install 'firstlight[{extra}]'"
        ) from error


def installed(extra: str) -> bool:
    """Whether the library behind ``extra`` can be imported (without importing it)."""
    return find_spec(EXTRAS[extra][0]) is not None
