"""What the writers of RESULTS.md share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstlight.core.files import read_json

ROOT = Path(__file__).resolve().parents[1]


def load(folder: str) -> list[dict[str, Any]]:
    """All JSON files of one folder of results, in order of name."""
    return [read_json(path) for path in sorted((ROOT / "results" / folder).glob("*.json"))]


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.4f}"


def table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A markdown table."""
    lines = [title, "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def machine(record: dict[str, Any]) -> str:
    """The machine in a few words."""
    about = record["machine"]
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    return f"{gpu}{about['processor']}, {threads}, torch {about['torch']}"
