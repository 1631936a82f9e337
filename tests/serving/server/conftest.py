from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving.server.running import Running, server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of a content model on a generated world, and its bundle."""
    from firstlight.cli.app import run

    folder = tmp_path_factory.mktemp("served")
    world, data, made, bundle = (folder / name for name in ("world", "data", "run", "bundle"))
    quick = ["--epochs", 2, "--threads", 1, "--set", "model.dim=8", "--set", "training.batch_size=256"]
    for words in (
        ["simulate", world, "--users", 60, "--items", 60, "--set", "cover_size=24"],
        ["data", "split", world, data, "--by", "cold-items"],
        ["train", data, "--model", "vbpr", *quick, "--out", made],
        ["export", made, bundle],
    ):
        assert run([str(word) for word in words]) == 0
    return {"run": made, "bundle": bundle}


@pytest.fixture(scope="session")
def pristine(trained: dict[str, Path]) -> Path:
    """The bundle, which nobody changes."""
    return trained["bundle"]


@pytest.fixture(scope="session")
def grouped(trained: dict[str, Path]) -> dict[str, Path]:
    """Another model on the same data, with hyperedges and a rule of its own for new users; nobody changes it."""
    from firstlight.cli.app import run

    folder = trained["run"].parent
    made, bundle = folder / "grouped-run", folder / "grouped"
    sets = ["model.dim=8", "training.batch_size=64", "model.hyper_weight=0.3", "model.hyperedges=5"]
    sets.append("model.membership_temperature=0.05")  # some clear groups, and some that are none
    words = ["train", folder / "data", "--model", "mhcr", "--epochs", 3, "--threads", 1, "--out", made]
    assert run([str(word) for word in [*words, *(x for one in sets for x in ("--set", one))]]) == 0
    assert run(["export", str(made), str(bundle)]) == 0
    return {"run": made, "bundle": bundle}


@pytest.fixture(scope="session")
def live(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that only add items of their own."""
    with server(Path(shutil.copytree(pristine, tmp_path_factory.mktemp("live") / "bundle"))) as running:
        yield running


@pytest.fixture
def copied(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to change."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))
