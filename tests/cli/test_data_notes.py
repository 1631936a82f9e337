"""What commands say of data that is odd but can be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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


def test_tables_without_header_from_the_command_line(firstlight: Firstlight, tmp_path: Path) -> None:
    table = tmp_path / "u.data"
    table.write_text("".join(f"{u}\t{100 + i}\t3\t{881250949 + u}\n" for u in range(9) for i in range(u + 1)))
    hinted = firstlight("data", "inspect", table)
    assert hinted.code == 2
    assert "--no-header" in hinted.err
    columns = ("--user", 1, "--item", 2, "--value", 3, "--time", 4)
    for words in (("data", "inspect", table), ("data", "convert", table, tmp_path / "data"),
                  ("data", "split", table, tmp_path / "parts", "--by", "time")):  # fmt: skip
        done = firstlight(*words, "--no-header", *columns, "--json")
        assert done.code == 0, done.err
        value = done.value
        assert sum((value.get("parts") or value["pairs"]).values()) == 45


def test_hints_fit_the_command(firstlight: Firstlight, shop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert firstlight("train", shop, "--model", "mf", "--epochs", 1, "--out", run, "--set", "training.selection=none",
                      "--set", "model.dim=8").code == 0  # fmt: skip
    table = tmp_path / "new.csv"
    for text in ("artikel,title\nn1,Soup\n", "item,title\n,Soup\n"):
        table.write_text(text)
        refused = firstlight("export", run, tmp_path / "b", "--items", table)
        assert refused.code == 2
        assert "→" in refused.err
        assert "--item " not in refused.err
        assert "--on-bad-rows" not in refused.err
        assert "--catalogue-item" not in refused.err
    (shop / "items.csv").write_text("artikel,title\ni01,Soup\n")
    assert "--catalogue-item" in firstlight("data", "inspect", shop).err
    assert firstlight("data", "inspect", shop, "--catalogue-item", "artikel").code == 0
    (shop / "items.csv").write_text("item,title\n,Soup\n")
    reported = firstlight("report", run, "--data", shop, "--out", tmp_path / "r.html")
    assert reported.code == 2
    assert "--on-bad-rows" not in reported.err


def test_covers_that_cannot_be_used_are_named_by_item_once(
    firstlight: Firstlight, shop: Path, tmp_path: Path
) -> None:
    items = [f"i{n:02d}" for n in range(20)]
    for n, item in enumerate(items):
        Image.effect_noise((16, 16), 20 + n).convert("RGB").save(shop / f"{item}.png")
    (shop / "i03.png").write_bytes(b"torn")
    (shop / "i05.png").unlink()
    (shop / "items.csv").write_text("item,title,cover\n" + "".join(f"{i},Film {i},{i}.png\n" for i in items))
    inspected = firstlight("data", "inspect", shop)
    assert "item 'i03' (i03.png)" in inspected.out
    assert "missing cover file: item 'i05' (i05.png)" in inspected.out
    run = firstlight(
        "train", shop, "--model", "content-knn", "--out", tmp_path / "run", "--set", "views.use=[cover]"
    )
    assert run.code == 0, run.err
    told = "2 of 20 covers cannot be used and count as absent (item 'i03', i03.png: cannot be decoded (not a picture); "
    assert run.err.replace("\n", " ").count(told + "item 'i05': 'i05.png' is missing)") == 1
    trained = firstlight("train", shop, "--model", "mhcr", "--out", tmp_path / "two", "--set", "views.use=[cover]",
                         "--set", "model.dim=8", "--epochs", 1)  # fmt: skip
    assert trained.code == 0, trained.err
    assert trained.err.count("covers cannot be used") == 1
