"""Columns of lists in item tables: embeddings are features, and a change anywhere is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.data.catalogue import Catalogue
from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.views.viewset import ViewSet

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


def test_embeddings_in_a_table_are_a_view_of_their_name(firstlight: Firstlight, tmp_path: Path) -> None:
    """They were joined to words of digits, and a model was trained on these."""
    clicks = [(user, (user * step) % 20) for user in range(40) for step in (1, 3, 7)]
    log = {"user": [f"u{user}" for user, _ in clicks], "item": [f"i{item:02d}" for _, item in clicks]}
    pl.DataFrame(log).write_parquet(tmp_path / "clicks.parquet")
    embeddings = [[float(item % 5 == place) for place in range(5)] for item in range(20)]
    items = {"item": [f"i{item:02d}" for item in range(20)], "clip_embedding": embeddings}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    found = firstlight("data", "inspect", tmp_path, "--json").value
    assert (found["texts"], [one["name"] for one in found["features"]]) == ({}, ["clip_embedding"])
    shown = firstlight("data", "inspect", tmp_path).out
    assert "feature clip_embedding" in shown
    assert "20 × 5, present for 20 items" in shown
    run = firstlight("train", tmp_path, "--model", "content-knn", "--out", tmp_path / "run")
    assert run.code == 0, run.err
    assert ViewSet.load(tmp_path / "run" / "views").names == ("clip_embedding",)
    made = firstlight("data", "convert", tmp_path, tmp_path / "made")
    assert made.code == 0, made.err
    assert (tmp_path / "made" / "features" / "clip_embedding.safetensors").exists()
