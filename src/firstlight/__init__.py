"""firstlight: recommendations that work for items nobody has clicked yet.

The commands are functions here, by the same names (``firstlight.train`` …); docs/python.md goes through them. Each is
imported when it is first asked for, so that ``import firstlight`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.api.data import convert, cut, inspect, read, simulate, split
    from firstlight.api.encoders import TrainedEncoder, embed, pretrain, probe, refine
    from firstlight.api.pipelines import run_pipeline
    from firstlight.api.runs import (
        Run,
        add_items,
        arrivals,
        compare,
        evaluate,
        export,
        recommend,
        report,
        serve,
        similar,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "Run",
    "TrainedEncoder",
    "__version__",
    "add_items",
    "arrivals",
    "compare",
    "convert",
    "cut",
    "embed",
    "evaluate",
    "export",
    "inspect",
    "pretrain",
    "probe",
    "read",
    "recommend",
    "refine",
    "report",
    "run_pipeline",
    "serve",
    "similar",
    "simulate",
    "split",
    "train",
]

#: Module of the facade → what it offers.
_OFFERS = {
    "data": ("convert", "cut", "inspect", "read", "simulate", "split"),
    "encoders": ("TrainedEncoder", "embed", "pretrain", "probe", "refine"),
    "pipelines": ("run_pipeline",),
    "runs": (
        *("Run", "add_items", "arrivals", "compare", "evaluate", "export"),
        *("recommend", "report", "serve", "similar", "train"),
    ),
}
_WHERE = {name: f"firstlight.api.{module}" for module, names in _OFFERS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'firstlight' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
