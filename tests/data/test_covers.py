"""Covers that training cannot use are counted and named before it."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from firstlight.data.inspect import inspect_path


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
FAULTS = {
    "cover that is cut off": [picture("JPEG")[:300], picture("PNG")[:300], b"\xff\xd8\xff\xe0corrupt"],
    "cover that is empty": [b""],
    "cover that is no picture": [b"<html>", b"RIFFxxxxWAVE", b"\0"],
}


def shop(folder: Path, covers: dict[str, str]) -> Path:
    (folder / "clicks.csv").write_text("user,item\n" + "".join(f"u,{item}\n" for item in covers))
    rows = "".join(f"{item},{cover}\n" for item, cover in covers.items())
    (folder / "items.csv").write_text("item,cover\n" + rows)
    return folder


def test_pictures_of_every_kind_pass(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).write_bytes(picture(kind))
    (tmp_path / "padded").write_bytes(picture("JPEG") + b"\0" * 500)
    assert inspect_path(shop(tmp_path, {kind: kind for kind in (*KINDS, "padded")})).problem_totals == {}


@pytest.mark.parametrize("as_bytes", [True, False])
def test_faulty_pictures_are_counted_and_named(tmp_path: Path, as_bytes: bool) -> None:
    contents = {
        f"{fault.split()[-1]}{n}": file for fault, files in FAULTS.items() for n, file in enumerate(files)
    }
    for name, file in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(file)
    shop(tmp_path, {name: f"{name}.jpg" for name in contents})
    if as_bytes:
        (tmp_path / "items.csv").unlink()
        pl.DataFrame({"item": list(contents), "cover": list(contents.values())}).write_parquet(
            tmp_path / "items.parquet"
        )
    found = inspect_path(tmp_path)
    faults = {fault: len(files) for fault, files in FAULTS.items() if not (as_bytes and files == [b""])}
    assert found.problem_totals == faults
    told = next(problem.problem for problem in found.problems if problem.kind == "cover that is cut off")
    first = "item 'off0'" if as_bytes else "item 'off0' (off0.jpg)"
    assert told.startswith(f"cover that is cut off: {first}, item ")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    covers = {f"m{n}": f"{n}.jpg" for n in range(5)}
    covers |= {"w": "https://host/a.jpg", "a": "/etc/passwd", "up": "../a.jpg"}
    found = inspect_path(shop(tmp_path, covers))
    assert found.problem_totals == {
        "missing cover file": 5,
        "cover that is a web address": 1,
        "cover file outside the folder": 2,
    }
    (missing,) = [problem for problem in found.problems if problem.kind == "missing cover file"]
    assert missing.problem == "missing cover file: item 'm0' (0.jpg), item 'm1' (1.jpg), item 'm2' (2.jpg), …"
