"""``probe`` from end to end on drawn images."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from drawn import draw_classes
from firstlight.core.seeds import torch_stream
from firstlight.vision.encoder_file import Encoder, save_encoder
from firstlight.vision.vit import ViT, ViTConfig
from plain_vit import random_state

QUICK = [
    "--set",
    "linear.epochs=4",
    "--set",
    "low_shot.splits=2",
    "--set",
    "clusters.restarts=2",
    "-k",
    "3,5",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = tmp_path_factory.mktemp("probe")
    draw_classes(base / "images" / "train", 12)
    draw_classes(base / "images" / "val", 5, seed=1)
    config = ViTConfig(image_size=(16, 16), patch_size=4, dim=32, depth=4, heads=2)
    for seed, name in enumerate(("before", "after", "again")):
        save_encoder(base / name, Encoder(ViT(config, torch_stream(seed % 2, "test"))))
    return base


def test_licences_of_foreign_checkpoints_are_told(firstlight, place, tmp_path):
    """By every command that reads one: ``embed``, ``pretrain``, ``refine`` and ``probe``."""
    state = random_state(dim=64, size=8, rows=5, depth=2, ratio=1)
    torch.save({"model": state | {"decoder_pred.bias": torch.ones(1)}}, tmp_path / "w.pth")
    images, out = place / "images" / "val", ("--out", tmp_path / "out")
    short = ["--set", "training.batch_size=8", "--threads", 1, "--epochs", 1]
    for words in (
        ("embed", images, "--encoder", tmp_path / "w.pth", *out),
        ("pretrain", images, "--encoder", tmp_path / "w.pth", *out, *short, "--set", "mae.decoder_dim=16",
         "--set", "mae.decoder_heads=2"),
        ("refine", images, "--encoder", tmp_path / "w.pth", *out, *short, "--head-epochs", 1,
         "--set", "training.batch_size=4", "--set", "refiner.widths=debug", "--set", "crops.n_local=1",
         "--set", "refiner.heads=1"),
        ("probe", tmp_path / "w.pth", place / "images", *QUICK, "--tasks", "knn"),
    ):  # fmt: skip
        done = firstlight(*words)
        assert done.code == 0, done.err
        assert "licence: published weights of MAE: CC BY-NC 4.0" in done.err, words[0]
        assert "ImageNet's are taken" in done.err, words[0]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_encoders_are_measured_side_by_side(firstlight, place, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["probe", place / "before", place / "after", place / "images", "--random-control", *QUICK]
    shown = firstlight(*words, "--json", "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    value = shown.value
    assert value["images"]["bank"] == {"part": "train", "images": 36}
    assert value["images"]["queries"] == {"part": "val", "images": 15}
    assert [encoder["name"] for encoder in value["encoders"]] == ["before", "after", "random start"]
    before = value["encoders"][0]
    assert len(before["knn"]) == 5 * 2 * 2  # four blocks and the output, two poolings, two k
    assert {row["k"] for row in before["knn"]} == {3, 5}
    mean = [row for row in before["knn"] if row["pooling"] == "mean" and row["block"] == 0 and row["k"] == 3]
    assert mean[0]["accuracy"] > 0.8  # colours survive any start
    assert mean[0]["standard_error"] < 0.15
    assert {row["labels"] for row in before["low_shot"]} == {"1-shot", "2-shot", "5-shot", "1 %", "10 %"}
    assert {row["pooling"] for row in before["clusters"]} == {"class", "mean"}
    assert before["linear"]["accuracy"] > 0.6
    assert len(before["linear"]["grid"]) == 4
    same = [row for row in value["paired"] if row["what"] == "same layer"]
    assert len(same) == 2 * 20
    assert [row["after"]["encoder"] for row in value["paired"] if row["what"] == "linear probe"] == [
        "after",
        "random start",
    ]
    assert {row["before"]["encoder"] for row in value["paired"]} == {"before"}
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == value
    assert (tmp_path / "out" / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_equal_encoders_are_equal(firstlight, place):
    words = ["probe", place / "before", place / "again", place / "images", "--tasks", "knn", *QUICK]
    value = firstlight(*words, "--json").value
    first, second = (encoder["knn"] for encoder in value["encoders"])
    assert first == second
    assert {(row["difference"], row["z"]) for row in value["paired"] if row["what"] == "same layer"} == {
        (0, 0)
    }


def test_the_table_says_what_was_measured(firstlight, place):
    words = ["probe", place / "before", place / "images" / "train", "--tasks", "knn,clusters", *QUICK]
    shown = firstlight(*words, "--finetune", "--set", "finetune.epochs=1")
    assert shown.code == 0, shown.err
    assert "k = 3" in shown.out
    assert "raw pixels: " in shown.out
    assert "3, after the norm" in shown.out
    assert "clusters: ACC" in shown.out
    assert "fine-tuned" in shown.out
    assert "before: best at block" in shown.out
    assert "linear" not in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "knn,sight"], "'sight' is not known"),
        (["--tasks", ""], "names nothing"),
        (["--split", "train/nowhere"], "nowhere"),
        (["-k", "1000"], "k = 1000"),
        (["--set", "linear.epoch=3"], "linear.epoch"),
        (["--set", "linear.learning_rates=[]"], "linear.learning_rates"),
        (["--set", "low_shot.shots=[0]"], "low_shot.shots"),
        (["--set", "blocks=[-1]"], "blocks"),
    ],
    ids=str,
)
def test_bad_input_is_told(firstlight, place, words, said):
    shown = firstlight("probe", place / "before", place / "images", *words)
    assert (shown.code, shown.out) == (2, "")
    assert said in shown.err
