"""Columns of lists in item tables: a change anywhere in a list is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.data.catalogue import Catalogue
from firstlight.data.folder import read_dataset_folder, write_dataset

Firstlight = Callable[..., Any]


def test_resume_notices_a_change_inside_a_list(firstlight: Firstlight, split: Path, tmp_path: Path) -> None:
    """Of thirty tags the print of a list shows the first and last few."""
    plain = read_dataset_folder(split)
    tags = [[f"t{(item * place) % 7}" for place in range(30)] for item in range(plain.n_items)]
    data, out = tmp_path / "data", tmp_path / "run"
    words = ("train", data, "--model", "content-knn", "--set", "views.use=[text]", "--out", out)

    def written() -> None:
        shutil.rmtree(data, ignore_errors=True)
        items = pl.DataFrame({"tags": tags}, schema={"tags": pl.List(pl.String)})
        write_dataset(replace(plain, catalogue=Catalogue(items), source=""), data)

    written()
    assert firstlight(*words).code == 0
    assert firstlight(*words, "--resume").code == 0
    tags[3][15] = "another"
    written()
    refused = firstlight(*words, "--resume")
    assert refused.code == 2
    assert "another config or other data" in refused.err
