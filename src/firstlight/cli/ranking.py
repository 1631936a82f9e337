"""Commands about trained runs: ``evaluate``, ``compare``, ``recommend``, ``similar``."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
