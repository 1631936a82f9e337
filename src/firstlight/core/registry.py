"""Names to implementations, without importing the implementations.

The command line lists models and losses in ``--help``; importing torch for that would cost seconds. So a
registry holds ``"module:attribute"`` strings and imports on first use.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from firstlight.core.errors import InputError


class Registry:
    """A read-only table of lazily imported implementations.

    Args:
        kind: What is registered, in the singular, for messages (``"model"``).
        entries: name -> ``"package.module:attribute"``.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """All registered names, in the order of registration."""
        return list(self._entries)

    def load(self, name: str) -> Any:
        """Import and return the implementation called ``name``.

        Raises:
            InputError: There is no such name; the message lists the names and the nearest one.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"there is no {self.kind} {name!r}", hint=f"{guess}known: {', '.join(self._entries)}"
            )
        module, attribute = self._entries[name].split(":")
        return getattr(importlib.import_module(module), attribute)
