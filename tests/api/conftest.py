"""One small world, and runs on it that were made by the functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import firstlight as fl

#: Fields that make a run finish in a moment.
QUICK = {"model.dim": 8, "training.batch_size": 256, "negatives.count": 16}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="session")
def world(place: Path) -> Path:
    fl.simulate(place / "world", users=80, items=60, set={"mean_clicks": 12})
    return place / "world"


@pytest.fixture(scope="session")
def split(world: Path, place: Path) -> Path:
    fl.split(world, place / "split", by="cold-items", seed=3)
    return place / "split"


@pytest.fixture(scope="session")
def runs(split: Path, place: Path) -> dict[str, fl.Run]:
    data = fl.read(split)
    models = {"popularity": {}, "mf": QUICK, "mhcr": QUICK}
    return {
        name: fl.train(
            data, model=name, out=place / name, epochs=3, threads=1, seed=2, set=fields, progress=False
        )
        for name, fields in models.items()
    }


@pytest.fixture
def command() -> Callable[..., dict[str, Any]]:
    """What ``firstlight WORDS --json`` prints."""
    from firstlight.cli.app import call

    return lambda *words: call([str(word) for word in words])
