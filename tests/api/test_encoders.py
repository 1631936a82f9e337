"""The functions about encoders give what the commands of the same names give."""

from __future__ import annotations

import polars as pl
import pytest

import firstlight as fl
from drawn import draw_classes
from firstlight.core.values import plain

SHAPE = {
    "encoder.image_size": [16, 16],
    "encoder.patch_size": 4,
    "encoder.dim": 16,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "mae.decoder_dim": 16,
    "mae.decoder_heads": 2,
    "mae.decoder_depth": 1,
    "training.batch_size": 8,
}
REFINER = {
    "refiner.widths": "debug",
    "refiner.queue_size": 16,
    "crops.n_local": 1,
    "training.batch_size": 8,
}
PROBE = {"linear.epochs": 2, "low_shot.splits": 2, "clusters.restarts": 2}


def words(fields: dict[str, object]) -> list[str]:
    return [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw_classes(folder / "train", 12)
    draw_classes(folder / "val", 5, seed=1)
    return folder


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoders") / "mae"
    return fl.pretrain(images / "train", out=out, epochs=2, threads=1, set=SHAPE, progress=False)


def same_but_for_time(found: dict, told: dict) -> bool:
    times = ("seconds", "images_per_second", "peak_memory_mb", "encoder")
    clean = lambda value: {  # noqa: E731
        key: {k: v for k, v in entry.items() if k != "seconds"} if key == "last_epoch" else entry
        for key, entry in value.items()
        if key not in times
    }
    return clean(plain(found)) == clean(told)


def test_pretrain(command, images, pretrained, tmp_path):
    options = ("--epochs", 2, "--threads", 1, *words(SHAPE))
    told = command("pretrain", images / "train", "--out", tmp_path / "mae", *options)
    assert same_but_for_time(pretrained.result, told)
    assert pretrained.table["epoch"].to_list() == [1, 2]
    assert "pretrain on 36 images" in repr(pretrained)
    assert pretrained.encoder.vit.config.dim == 16


def test_refine(command, images, pretrained, tmp_path):
    options = ("--epochs", 1, "--head-epochs", 1, "--temperature", 0.2, "--threads", 1, *words(REFINER))
    told = command(
        "refine", images / "train", "--encoder", pretrained.path, "--out", tmp_path / "a", *options
    )
    found = fl.refine(
        images / "train",
        encoder=pretrained,
        out=tmp_path / "b",
        epochs=1,
        head_epochs=1,
        temperature=0.2,
        threads=1,
        set=REFINER,
        progress=False,
    )
    assert same_but_for_time(found.result, told)
    assert found.history["phase"].n_unique() == 2


def test_embed(command, images, pretrained, tmp_path):
    told = command(
        "embed", images / "train", "--encoder", pretrained.path, "--out", tmp_path / "a", "--tokens", "mean"
    )
    found = fl.embed(images / "train", encoder=pretrained, out=tmp_path / "b", tokens="mean")
    times = ("seconds", "images_per_second", "dataset")
    assert {k: v for k, v in found.items() if k not in times} == {
        k: v for k, v in told.items() if k not in times
    }
    first, second = (
        fl.read(tmp_path / name).catalogue.features["encoder"].values.tolist() for name in ("a", "b")
    )
    assert first == second


def test_probe(command, images, pretrained, tmp_path):
    told = command("probe", pretrained.path, images, "--random-control", "-k", "3,5", *words(PROBE))
    found = fl.probe(pretrained, images, random_control=True, k=[5, 3], set=PROBE, progress=False)
    assert plain(found.result) == told
    table = found.table
    assert table["encoder"].unique(maintain_order=True).to_list() == ["mae", "random start"]
    row = told["encoders"][0]["knn"][0]
    picked = table.row(0, named=True)
    assert (picked["measure"], picked["value"], picked["block"]) == ("3-NN", row["accuracy"], row["block"])
    linear = table.filter(pl.col("measure") == "linear probe")
    assert linear["value"].to_list() == [e["linear"]["accuracy"] for e in told["encoders"]]
    measured = set(table["measure"].to_list())
    assert {"3-NN", "5-NN", "linear probe", "1-shot", "clusters: nmi", "clusters: davies_bouldin"} <= measured
    assert "3 classes" in repr(found)
