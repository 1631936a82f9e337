"""What commands say of data that is odd but can be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Firstlight = Callable[..., Any]
TOLD = "18 of 20 clicked items are not in items.csv, such as"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Forty users, twenty items, and titles of two of them."""
    folder = tmp_path / "shop"
    folder.mkdir()
    pairs = [(user, (user * step) % 20) for user in range(40) for step in (1, 3, 7)]
    (folder / "clicks.csv").write_text("user,item\n" + "".join(f"u{u},i{i:02d}\n" for u, i in pairs))
    (folder / "items.csv").write_text("item,title\ni01,Soup\ni02,Cake\n")
    return folder


def test_unknown_items_are_told_of_by_every_command_that_reads(
    firstlight: Firstlight, shop: Path, tmp_path: Path
) -> None:
    converted = firstlight("data", "convert", shop, tmp_path / "data")
    assert TOLD in converted.out + converted.err
    inspected = firstlight("data", "inspect", shop)
    assert TOLD in inspected.out + inspected.err
    assert "nothing is wrong" not in inspected.out
    run = firstlight("train", tmp_path / "data", "--model", "mf", "--epochs", 1, "--out", tmp_path / "run", "--set",
                     "training.selection=none", "--set", "model.dim=8")  # fmt: skip
    assert run.code == 0, run.err
    assert TOLD in run.err


def test_titles_of_other_items_are_refused_by_export_and_missing_ones_counted(
    firstlight: Firstlight, shop: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert firstlight("train", shop, "--model", "mf", "--epochs", 1, "--out", run, "--set", "training.selection=none",
                      "--set", "model.dim=8").code == 0  # fmt: skip
    partly = firstlight("export", run, tmp_path / "b1", "--items", shop / "items.csv")
    assert partly.code == 0, partly.err
    assert "18 of 20 items of the run are not in" in partly.err
    other = tmp_path / "other.csv"
    other.write_text("item,title\n1,Soup\n")
    refused = firstlight("export", run, tmp_path / "b2", "--items", other)
    assert refused.code == 2
    assert "no item of the run is here" in refused.err
    assert not (tmp_path / "b2").exists()
