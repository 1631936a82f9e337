"""The command ``embed``, and what comes of an encoder's view in training and for new items."""

from __future__ import annotations

import json

import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.vision.encoder_file import Encoder, save_encoder
from firstlight.vision.vit import ViT, ViTConfig


@pytest.fixture(scope="module")
def enc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enc")
    shape = ViTConfig(image_size=(16, 16), patch_size=8, dim=16, depth=1, heads=2)
    save_encoder(folder, Encoder(ViT(shape, torch_stream(0, "vit")).eval()))
    return folder


def test_a_feature_for_the_items_of_a_dataset(firstlight, world, enc, tmp_path):
    copied = firstlight("data", "convert", world, tmp_path / "data")
    assert copied.code == 0
    found = firstlight(
        "embed", world, "--encoder", enc, "--out", tmp_path / "data", "--name", "vit", "--json"
    )
    assert found.code == 0
    assert (found.value["feature"], found.value["dim"], found.value["images"]) == ("vit", 16, 60)
    listed = firstlight("data", "inspect", tmp_path / "data", "--json").value
    assert "vit" in [feature["name"] for feature in listed["features"]]
    words = ("embed", world, "--encoder", enc, "--out", tmp_path / "data", "--name", "tall")
    tall = firstlight(*words, "--image-size", "24,16", "--tokens", "patches", "--json")
    assert tall.value["dim"] == 3 * 2 * 16
    half = ("embed", world, "--encoder", enc, "--out", tmp_path / "data", "--name", "half")
    assert firstlight(*half, "--precision", "bfloat16").code == 0
    refused = firstlight(*half)
    assert refused.code == 2
    assert "another precision" in refused.err
    again = firstlight("embed", world, "--encoder", enc, "--out", tmp_path / "data", "--name", "vit")
    assert "was there already" in again.out


def test_bad_input(firstlight, world, enc, tmp_path):
    for words in (
        ("--encoder", tmp_path / "nothing", "--out", tmp_path / "o"),
        ("--encoder", enc, "--out", tmp_path / "o", "--tokens", "all"),
        ("--encoder", enc, "--out", tmp_path / "o", "--device", "tpu"),
        ("--encoder", enc, "--out", tmp_path / "o", "--precision", "half"),
        ("--encoder", enc, "--out", tmp_path / "o", "--name", "a/b"),
        ("--encoder", enc, "--out", tmp_path / "o", "--threads", -1),
    ):
        outcome = firstlight("embed", world, *words)
        assert outcome.code == 2
        assert not (tmp_path / "o").exists()
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "w.pth")
    outcome = firstlight("embed", world, "--encoder", tmp_path / "w.pth", "--out", tmp_path / "o")
    assert outcome.code == 2
    assert "known layout" in outcome.err


def test_trained_with_the_view_and_new_items_added(firstlight, world, enc, tmp_path):
    run = tmp_path / "run"
    trained = firstlight(
        "train", world, "--model", "vbpr", "--epochs", 1, "--threads", 1, "--out", run,
        "--set", "model.dim=8", "--set", f"views.encoder={enc}", "--set", "views.use=[encoder]", "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    views = json.loads((run / "views" / "views.json").read_text())
    assert [view["kind"] for view in views["views"]] == ["encoder"]
    assert firstlight("export", run, tmp_path / "bundle").code == 0
    cover = tmp_path / "new.png"
    from PIL import Image

    Image.new("RGB", (30, 40), (10, 200, 30)).save(cover)
    added = firstlight("add-items", tmp_path / "bundle", cover, "--title", "A new one", "--json")
    assert added.code == 0, added.err
    near = firstlight("similar", tmp_path / "bundle", "--items", "new", "-k", 3, "--json")
    assert near.code == 0, near.err
