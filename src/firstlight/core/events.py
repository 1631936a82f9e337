"""The event stream: rooms say what happens, the command line draws it.

An event is a name and a flat dictionary of JSON values. Rooms take an ``emit`` callable and never print.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: ``emit(name, **values)``
Emit = Callable[..., None]


def silent(name: str, /, **values: Any) -> None:
    """Drop every event: the default where nobody listens."""


def fan_out(*listeners: Emit) -> Emit:
    """One emitter that hands every event to all ``listeners``, in order."""

    def emit(name: str, /, **values: Any) -> None:
        for listener in listeners:
            listener(name, **values)

    return emit
