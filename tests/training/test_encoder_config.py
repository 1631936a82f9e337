"""The config of ``pretrain``: what follows from the images, what is refused, and the recipes."""

import io
from importlib import resources

import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.training.encoder_config import build_pretrain_config
from firstlight.training.pretrain import pretrain
from firstlight.training.recipes import list_recipes
from firstlight.vision.image_set import ImageSet
from firstlight.vision.images import open_images
from firstlight.vision.objective import uniform
from pretraining import config, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_images(write_images(tmp_path_factory.mktemp("images") / "images.parquet"))


def test_the_encoder_follows_from_the_images(images):
    found = build_pretrain_config(images).encoder
    assert (found.image_size, found.patch_size, found.dim, found.depth) == ((16, 16), 4, 192, 12)
    assert build_pretrain_config(images, overrides=["encoder.patch_size=8"]).encoder.grid == (2, 2)

    def sized(width, height):
        target = io.BytesIO()
        Image.new("RGB", (width, height)).save(target, "PNG")
        return build_pretrain_config(ImageSet(["x"], "x", "x", [target.getvalue()])).encoder

    poster = sized(64, 96)
    assert (poster.image_size, poster.patch_size) == ((96, 64), 8)
    large = sized(1000, 1500)
    assert (large.image_size, large.patch_size) == ((224, 144), 16)
    assert sized(600, 600).image_size == (224, 224)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["encoder.heads=5"], "field encoder(.|\n)*5 heads do not divide"),
        (["encoder.image_size=[17,16]"], "do not tile"),
        (["encoder.patch_size=16"], "too few to hide"),
        (["encoder.image_size=16"], "field encoder.image_size"),
        (["encoder.image_size=[a,16]"], "field encoder.image_size"),
        (["encoder.patch_size=0"], "field encoder.patch_size"),
        (["encoder.channels=1"], "images have 3 channels"),
        (["mae.crop_scale=[0.5,0.2]"], "field mae.crop_scale"),
        (["mae.crop_scale=[0.5,2]"], "field mae.crop_scale"),
        (["mae.mask_ratio=1"], "field mae.mask_ratio"),
        (
            ["training.batchsize=3"],
            "there is no setting 'training.batchsize'(.|\n)*did you mean 'training.batch_size'",
        ),
        (["encoder=3"], "field encoder: not a mapping"),
        (["training.epochs"], "not of the form key.path=value"),
        (["training.batch_size=64"], "26 usable images are fewer than one batch of 64"),
    ],
)
def test_bad_settings_are_named(images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        pretrain(images, config(images, *changes), tmp_path / "enc")
    assert not (tmp_path / "enc").exists()  # so that the run can be tried again as the hint says


def test_recipes_are_told_apart(images):
    with pytest.raises(InputError, match="no recipe 'gowalla-mf'"):
        build_pretrain_config(images, recipe="gowalla-mf")
    assert "gowalla-mf" in list_recipes()
    assert not any(name.startswith(("pretrain", "refine")) for name in list_recipes())


@pytest.mark.parametrize("recipe", list_recipes("pretrain"))
def test_every_recipe_is_valid_and_says_how_to_run_it(images, recipe):
    text = (resources.files("firstlight") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# firstlight pretrain IMAGES ")
    assert f"--recipe {recipe} " in text.splitlines()[0]
    assert build_pretrain_config(images, recipe=recipe).training.epochs >= 100


def test_ranks_draw_their_part_of_the_batch(monkeypatch):
    from firstlight.vision import objective

    whole = uniform(6, 5, torch.Generator().manual_seed(0))
    monkeypatch.setattr(objective, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(objective, "rank", lambda rank=rank: rank)
        part = uniform(3, 5, torch.Generator().manual_seed(0))
        assert torch.equal(part, whole[3 * rank : 3 * rank + 3])
