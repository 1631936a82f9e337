"""A command line in this process: fast, with stdout and stderr apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything else there fails."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def firstlight(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``firstlight WORDS`` and give exit code, stdout and stderr."""
    from firstlight.cli.app import run

    def call(*words: object) -> Outcome:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return call


#: Fields that make a run finish in a moment.
QUICK = [
    "--set",
    "model.dim=8",
    "--set",
    "training.batch_size=256",
    "--set",
    "negatives.count=16",
    "--threads",
    1,
]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated world as a dataset folder."""
    from firstlight.cli.app import run

    out = tmp_path_factory.mktemp("world") / "world"
    assert run(["simulate", str(out), "--users", "80", "--items", "60", "--set", "mean_clicks=12"]) == 0
    return out


@pytest.fixture(scope="session")
def split(world: Path) -> Path:
    """The same clicks, split at random."""
    from firstlight.cli.app import run

    out = world.parent / "split"
    assert run(["data", "split", str(world), str(out), "--by", "random", "--seed", "3"]) == 0
    return out


@pytest.fixture(scope="session")
def runs(split: Path) -> dict[str, Path]:
    """Finished runs: popularity and MF."""
    from firstlight.cli.app import run

    found = {name: split.parent / name for name in ("popularity", "mf")}
    for name, out in found.items():
        words = [
            "train",
            split,
            "--model",
            name,
            "--epochs",
            4,
            "--out",
            out,
            *(QUICK if name == "mf" else []),
        ]
        assert run([str(word) for word in words]) == 0
    return found
