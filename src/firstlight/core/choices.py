"""Words that stand for a choice."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.core.errors import InputError


def one_of(word: str, allowed: Sequence[str], what: str) -> str:
    """Check a choice.

    Args:
        word: What was chosen.
        allowed: What there is.
        what: What the choice is about, for the message (``"--by"``, ``"targets"``).

    Raises:
        InputError: ``word`` is none of ``allowed``.
    """
    if word not in allowed:
        raise InputError(f"{what} {word!r} is not known", hint=f"one of: {', '.join(allowed)}")
    return word
