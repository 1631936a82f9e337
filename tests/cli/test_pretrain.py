"""``pretrain`` from the command line."""

from __future__ import annotations

import pytest

from drawn import draw_classes
from firstlight.vision.encoder_file import load_encoder

TINY = ["encoder.dim=16", "encoder.depth=2", "encoder.heads=2", "mae.decoder_dim=16", "mae.decoder_heads=2"]
QUICK = [word for change in [*TINY, "training.batch_size=8"] for word in ("--set", change)]
QUICK += ["--epochs", 2, "--threads", 1]


@pytest.fixture
def images(tmp_path):
    folder = draw_classes(tmp_path / "images", 6)
    (folder / "red" / "torn.png").write_bytes(b"no picture")
    return folder


def test_a_folder_of_images_becomes_an_encoder(firstlight, images, tmp_path):
    done = firstlight("pretrain", images, "--out", tmp_path / "enc", *QUICK, "--json")
    assert done.code == 0, done.err
    assert done.value["images"]["count"] == 19
    assert list(done.value["images"]["unusable"]) == ["red/torn.png"]
    assert done.value["last_epoch"]["epoch"] == 2
    assert done.value["images_per_second"] > 0
    assert "18 images at 16 × 16 px" in done.err
    assert "image 'red/torn.png' cannot be used: cannot be decoded (not a picture)" in done.err
    assert "pretrain 2/2  loss" in done.err
    assert load_encoder(tmp_path / "enc").vit.config.dim == 16

    again = firstlight("pretrain", images, "--out", tmp_path / "enc", *QUICK, "--resume")
    assert again.code == 0
    assert "unusable images  1" in again.out
    assert f"the encoder is in {tmp_path / 'enc'}" in again.out

    more = firstlight("pretrain", images, "--out", tmp_path / "more", "--encoder", tmp_path / "enc",
                      "--set", "training.batch_size=8", "--epochs", 1, "--set", "mae.decoder_dim=16",
                      "--set", "mae.decoder_heads=2", "--threads", 1, "--json")  # fmt: skip
    assert more.value["config"]["encoder"] == done.value["config"]["encoder"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "training.batch_size=64"], "18 usable images are fewer than one batch of 64"),
        (["--objective", "jigsaw"], "config field objective"),
        (["--recipe", "nothing"], "there is no recipe 'nothing'"),
        (["--set", "encoder.dept=3"], "there is no setting 'encoder.dept'"),
        (["--split", "train"], "there is no sub-folder 'train'"),
        (["--image-column", "jpeg"], "needs a Parquet file"),
        (["--encoder", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told(firstlight, images, tmp_path, words, message):
    done = firstlight("pretrain", images, "--out", tmp_path / "enc", *QUICK, *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "enc").exists()


def test_nothing_to_learn_from(firstlight, tmp_path):
    done = firstlight("pretrain", tmp_path, "--out", tmp_path / "enc")
    assert done.code == 2
    assert "there are no images here" in done.err
