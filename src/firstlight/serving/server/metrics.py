"""Counters and histograms in Prometheus' text format (0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper ends in seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What the server counts. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, tuple[list[int], list[float]]]] = {}
        self._ends: dict[str, Sequence[float]] = {}

    def declare(self, name: str, kind: str, text: str, ends: Sequence[float] = SECONDS) -> None:
        """Name a metric: ``counter``, ``gauge`` or ``histogram``."""
        self._help[name] = (kind, text)
        if kind == "histogram":
            self._ends[name] = ends
            self._histograms[name] = {}
        else:
            self._counts[name] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            values = self._counts[name]
            values[key] = values.get(key, 0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add to a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            ends = self._ends[name]
            buckets, total = self._histograms[name].setdefault(key, ([0] * (len(ends) + 1), [0.0]))
            buckets[bisect_left(ends, value)] += 1
            total[0] += value

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with the current values of the gauges."""
        lines = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                if kind == "histogram":
                    for labels, (buckets, total) in self._histograms[name].items():
                        lines += _histogram(name, labels, self._ends[name], buckets, total[0])
                else:
                    values = {(): gauges[name]} if kind == "gauge" else self._counts[name]
                    lines += [f"{name}{_braces(labels)} {value:.10g}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"


def _histogram(
    name: str, labels: Labels, ends: Sequence[float], buckets: Sequence[int], total: float
) -> list[str]:
    lines, so_far = [], 0
    for end, count in zip([*map(str, ends), "+Inf"], buckets, strict=True):
        so_far += count
        lines.append(f"{name}_bucket{_braces((*labels, ('le', end)))} {so_far}")
    return [*lines, f"{name}_sum{_braces(labels)} {total:.10g}", f"{name}_count{_braces(labels)} {so_far}"]


def _braces(labels: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""
