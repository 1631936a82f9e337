"""What each model may try in the tables of ``cold_start.py``: its settings and its grid, one budget for all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from firstlight.models import MODELS

#: The same for everybody: most candidates of a grid, and epochs of a candidate.
BUDGET, EPOCHS = 2, 16
#: Epochs where it takes more of them: one of tiktok has a tenth of the clicks of one of movielens-1m, or fewer, and
#: what draws its negatives one by one needs the steps.
LONGER = {"tiktok": 60}
#: Every user against every warm item, from a spectral start: what the models of this project train with.
_SOFTMAX = [
    *("loss.name=softmax", "temperature.name=fixed", "negatives.name=all"),
    *("training.batch=users", "training.lr=4e-3", "model.init=spectral", "model.init_norm=0.3"),
]
_TAU = {"temperature.tau": [0.1, 0.2]}
#: Published models as published, and with cosines and a sampled softmax in place of BPR.
_BPR = [
    "loss.name=bpr",
    "temperature.name=fixed",
    "temperature.tau=1",
    "negatives.name=uniform",
    "negatives.count=1",
]
_COSINE = [
    *("loss.name=softmax", "temperature.name=fixed", "temperature.tau=0.15", "model.normalise=both"),
    *("negatives.name=shared", "negatives.count=1024"),
]
_EITHER: dict[str, list[Any]] = {"+": [_BPR, _COSINE]}
_PAIRS = ["training.lr=3e-3", "training.batch_size=2048"]
_WIDE = ["model.dim=256"]
_WIDTHS: dict[str, list[Any]] = {"+": [[], _WIDE]}
_WIDE_COSINE = [*_COSINE, *_WIDE, "temperature.tau=0.2"]
#: A folder (or a link to one) that sentence-transformers can load: what ``MODEL+sentence`` reads texts with besides.
SENTENCES = Path("runs") / "sentence-encoder"
#: Model → settings that every candidate has, and the grid: setting → values, all combinations of them; ``+`` stands
#: for whole lists of settings. A key ``MODEL@DATA`` replaces the model's entry on that data, ``MODEL@DATA-PROTOCOL``
#: under that protocol.
GRIDS: dict[str, tuple[list[str], dict[str, list[Any]]]] = {
    "random": ([], {}),
    "popularity": ([], {}),
    "content-knn": ([], {"model.weights": ["{}", "{cover: 0}"]}),
    "content-knn@tiktok": ([], {"model.weights": ["{}", "{image: 0}"]}),
    "item-knn": ([], {"model.neighbours": [20, 100]}),
    "mf": ([*_SOFTMAX, "model.user_dropout=0.3"], _TAU),
    "lightgcn": ([*_SOFTMAX, "model.user_dropout=0.3", "model.layers=2"], _TAU),
    "vbpr": (_PAIRS, _EITHER),
    "layergcn": (_PAIRS, _EITHER),
    "bm3": (_PAIRS, {"model.dropout": [0.3, 0.5]}),
    "freedom": (_PAIRS, _EITHER),
    "mgcn": (_PAIRS, _EITHER),
    "dropoutnet": (_PAIRS, {"model.dropped": [0.3, 0.5]}),
    "clcrec": (["negatives.name=shared", "negatives.count=512"], {"training.lr": [3e-3, 3e-2]}),
    "tower": (_SOFTMAX, _TAU),
    # Content in every item's vector; or content for cold items alone, and clicks as LightGCN reads them.
    "mhcr": (
        ["training.batch_size=64", "temperature.tau=0.1"],
        {"+": [[], ["model.content_joins=false", "model.layers=2"]]},
    ),
    # TikTok: vectors of the usual width, and of four times the width; what was published with BPR has it at the usual
    # one. A hundred users with hundreds of clicks each and thousands with one to four leave nothing for a sharper
    # softmax than .2.
    **{
        f"{name}@tiktok": ([*_SOFTMAX, "model.user_dropout=0.3", "temperature.tau=0.2", *settings], _WIDTHS)
        for name, settings in {"mf": (), "lightgcn": ("model.layers=2",), "tower": ()}.items()
    },
    **{
        f"{name}@tiktok": (_PAIRS, {"+": [_BPR, _WIDE_COSINE]})
        for name in ("vbpr", "layergcn", "freedom", "mgcn")
    },
    "bm3@tiktok": ([*_PAIRS, "model.dropout=0.3"], {"+": [[], _WIDE_COSINE]}),
    "dropoutnet@tiktok": ([*_PAIRS, "model.dropped=0.3"], _WIDTHS),
    "clcrec@tiktok": (["negatives.name=shared", "negatives.count=512", "training.lr=3e-3"], _WIDTHS),
    "mhcr@tiktok": (
        ["temperature.tau=0.2"],
        {"+": [[], ["model.content_joins=false", "model.layers=2"]]},
    ),
    # Nearly all that is wanted has clicks, and features tell little: clicks alone rank warm items.
    "mhcr@tiktok-given": (
        [
            *("temperature.tau=0.2", "model.hyper_weight=0", "model.layers=2", "model.content_joins=false"),
            *("model.fusion=none", "model.cold_moves_users=false"),
        ],
        _WIDTHS,
    ),
}


def bare(model: str) -> str:
    """The model's registered name: ``tower`` of ``tower+sentence``."""
    return model.partition("+")[0]


def candidates(model: str, data: str, protocol: str = "cold-items") -> list[list[str]]:
    """The settings of each candidate.

    Raises:
        ValueError: The grid is larger than the budget.
    """
    name, _, besides = model.partition("+")
    fixed, grid = GRIDS.get(f"{name}@{data}-{protocol}") or GRIDS.get(f"{name}@{data}") or GRIDS[name]
    longer = [f"training.epochs={LONGER[data]}"] if data in LONGER and MODELS.load(name).trainable else []
    if besides:
        longer.append(f"views.sentence.path={SENTENCES}")
    found = []
    for values in itertools.product(*grid.values()):
        settings = [*longer, *fixed]
        for key, value in zip(grid, values, strict=True):
            settings += value if key == "+" else [f"{key}={value}"]
        found.append(settings)
    if len(found) > BUDGET:
        raise ValueError(f"{model} has {len(found)} candidates on {data}, the budget is {BUDGET}")
    return found
