"""Images to a feature of a dataset folder: the right rows in the right places, also after an interruption."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import Catalogue
from firstlight.data.dataset import Dataset
from firstlight.data.folder import read_dataset_folder, write_dataset
from firstlight.data.interactions import Interactions
from firstlight.views import embed as embed_module
from firstlight.views.embed import embed
from firstlight.vision.encoder_file import Encoder, with_precision
from firstlight.vision.images import open_images
from firstlight.vision.vit import ViT, ViTConfig

SHAPE = ViTConfig(image_size=(8, 8), patch_size=4, dim=16, depth=1, heads=2)


def make_encoder(seed=0, **changes):
    config = SHAPE.model_copy(update=changes)
    pooling = "class" if config.class_token else "mean"
    return Encoder(ViT(config, torch_stream(seed, "vit")).eval(), pooling=pooling)


def picture(seed, tools):
    return tools.png(size=(10, 12), seed=seed)


@pytest.fixture
def pictures(tmp_path, tools):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(11):
        (folder / f"i{row:02d}.png").write_bytes(picture(row, tools) if row != 4 else b"torn")
    return folder


@pytest.fixture
def dataset(tmp_path, tools):
    """Items in another order than the pictures, two of them without one."""
    ids = [f"i{row:02d}" for row in (7, 3, 99, 0, 1, 2, 4, 10, 98)]
    covers = [picture(int(own[1:]), tools) if own < "i90" and own != "i04" else None for own in ids]
    items = pl.DataFrame({"cover": covers})
    log = Interactions.from_pairs(np.array([0]), np.array([0]), 1, len(ids))
    write_dataset(
        Dataset("d", pl.Series(["u"]), pl.Series(ids), log, catalogue=Catalogue(items)), tmp_path / "d"
    )
    return tmp_path / "d"


def expected(encoder, images, row, tokens=None):
    return encoder.features(encoder.prepare(images.load(row))[None], tokens).reshape(-1).numpy()


@pytest.mark.parametrize("tokens", [None, "mean", "patches"])
def test_a_new_folder_gets_the_images_as_items(pictures, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(embed_module, "_PART_ROWS", 4)
    encoder, images = make_encoder(), open_images(pictures)
    result = embed(images, encoder, tmp_path / "out", name="x", tokens=tokens)
    assert list(result["unusable"]) == ["i04.png"]
    assert (result["images"], result["items"], result["made_now"]) == (11, 11, 11)
    found = read_dataset_folder(tmp_path / "out")
    assert found.item_ids.to_list() == images.ids
    matrix = found.catalogue.features["x"]
    assert np.flatnonzero(~matrix.present).tolist() == [4]
    assert matrix.values.shape == (11, 4 * 16 if tokens == "patches" else 16)
    for row in (0, 3, 5, 10):
        np.testing.assert_allclose(matrix.values[row], expected(encoder, images, row, tokens), atol=1e-6)
    assert not any(path.name.startswith(".embed") for path in (tmp_path / "out").iterdir())


def test_a_dataset_gets_rows_in_the_order_of_its_items(pictures, dataset, monkeypatch):
    monkeypatch.setattr(embed_module, "_PART_ROWS", 3)
    encoder, images = make_encoder(), open_images(pictures)
    result = embed(images, encoder, dataset)
    assert result["images_that_are_no_items"] == 4
    matrix = read_dataset_folder(dataset).catalogue.features["encoder"]
    assert np.flatnonzero(~matrix.present).tolist() == [2, 6, 8]
    for item, image in ((0, 7), (1, 3), (3, 0), (7, 10)):
        np.testing.assert_allclose(matrix.values[item], expected(encoder, images, image), atol=1e-6)


def test_covers_of_the_dataset_itself(dataset, pictures):
    encoder = make_encoder()
    embed(open_images(dataset), encoder, dataset, name="own")
    embed(open_images(pictures), encoder, dataset, name="files")
    features = read_dataset_folder(dataset).catalogue.features
    np.testing.assert_array_equal(features["own"].values, features["files"].values)
    np.testing.assert_array_equal(features["own"].present, features["files"].present)


def test_products_in_bfloat16(pictures, tmp_path):
    encoder, images = make_encoder(), open_images(pictures)
    embed(images, encoder, tmp_path / "out", name="x", precision="bfloat16")
    rows = read_dataset_folder(tmp_path / "out").catalogue.features["x"].values
    reduced = with_precision(encoder, "bfloat16")
    for row in (0, 10):
        np.testing.assert_array_equal(rows[row], expected(reduced, images, row))
    assert embed(images, encoder, tmp_path / "out", name="x", precision="bfloat16")["already_there"]
    with pytest.raises(InputError, match="in another precision"):
        embed(images, encoder, tmp_path / "out", name="x")
    embed(images, encoder, tmp_path / "out", name="plain")
    assert embed(images, encoder, tmp_path / "out", name="plain", precision="float32")["already_there"]


class Stopped(Exception):
    pass


def test_an_interrupted_run_goes_on(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "_PART_ROWS", 4)
    encoder, images = make_encoder(), open_images(pictures)
    embed(images, encoder, tmp_path / "whole")

    def stop(name, **values):
        if name == "images" and values["done"] == 9:
            raise Stopped

    with pytest.raises(Stopped):
        embed(images, encoder, tmp_path / "out", emit=stop)
    assert not read_dataset_folder(tmp_path / "out").catalogue.features
    result = embed(images, encoder, tmp_path / "out")
    assert result["made_now"] == 3  # two parts of four were there
    assert list(result["unusable"]) == ["i04.png"]
    both = [tmp_path / side / "features" / "encoder.safetensors" for side in ("whole", "out")]
    assert both[0].read_bytes() == both[1].read_bytes()


def test_parts_of_another_encoder_are_not_taken(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "_PART_ROWS", 4)
    images = open_images(pictures)

    def stop(name, **values):
        if name == "images" and values["done"] == 9:
            raise Stopped

    with pytest.raises(Stopped):
        embed(images, make_encoder(), tmp_path / "out", emit=stop)
    other = make_encoder(seed=1)
    assert embed(images, other, tmp_path / "out")["made_now"] == 11
    matrix = read_dataset_folder(tmp_path / "out").catalogue.features["encoder"]
    np.testing.assert_allclose(matrix.values[0], expected(other, images, 0), atol=1e-6)


def test_done_twice_and_done_otherwise(pictures, tmp_path):
    images = open_images(pictures)
    embed(images, make_encoder(), tmp_path / "out")
    again = embed(images, make_encoder(), tmp_path / "out")
    assert again["already_there"]
    assert again["made_now"] == 0
    for encoder, tokens in ((make_encoder(seed=1), None), (make_encoder(), "mean")):
        with pytest.raises(InputError, match="another encoder"):
            embed(images, encoder, tmp_path / "out", tokens=tokens)


def test_a_row_that_is_not_finite_is_no_row(pictures, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.vit.norm.bias.fill_(math.nan)
    result = embed(open_images(pictures), encoder, tmp_path / "out")
    assert len(result["unusable"]) == 11
    assert "not finite" in result["unusable"]["i00.png"]
    matrix = read_dataset_folder(tmp_path / "out").catalogue.features["encoder"]
    assert not matrix.present.any()
    assert np.isfinite(matrix.values).all()


def test_what_is_refused(pictures, dataset, tmp_path):
    images = open_images(pictures)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="neither"):
        embed(images, make_encoder(), tmp_path / "full")
    with pytest.raises(InputError, match="file name"):
        embed(images, make_encoder(), dataset, name="a/b")
    with pytest.raises(InputError, match="class token"):
        embed(images, make_encoder(class_token=False), tmp_path / "new", tokens="class")
    assert not (tmp_path / "new").exists()
    strange = tmp_path / "strange"
    strange.mkdir()
    Image.new("RGB", (9, 9)).save(strange / "other.png")
    with pytest.raises(InputError, match="no image is of an item"):
        embed(open_images(strange), make_encoder(), dataset)


def test_a_very_id_goes_before_a_name_without_suffix():
    places = embed_module._places(["a", "a.png", "b.png", "c"], ["b", "a", "z"], None)
    assert places.tolist() == [2, 0, -1]
    assert embed_module._places(["a.png", "a"], ["a"], None).tolist() == [1]
