"""The ENC folder, and how images come to an encoder."""

import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.vision.encoder_file import (
    Encoder,
    foreign_notes,
    load_encoder,
    resized,
    save_encoder,
    with_precision,
)
from firstlight.vision.vit import ViT, ViTConfig, pool

CONFIG = ViTConfig(image_size=(16, 8), patch_size=4, dim=16, depth=2, heads=2)


def make(seed=0, **changes):
    config = CONFIG.model_copy(update=changes)
    return Encoder(
        ViT(config, torch_stream(seed, "vit")).eval(), pooling="class" if config.class_token else "mean"
    )


def test_saved_and_loaded_bit_by_bit(tmp_path):
    encoder = make(positions="learned", layer_scale=0.1, registers=2)
    encoder.licence, encoder.history = "CC0", [{"made by": "hand"}]
    encoder.mean, encoder.crop = (0.1, 0.2, 0.3), 0.875
    save_encoder(tmp_path / "enc", encoder)
    loaded = load_encoder(tmp_path / "enc")
    assert loaded.vit.config == encoder.vit.config
    for name in ("mean", "std", "pooling", "crop", "licence", "history"):
        assert getattr(loaded, name) == getattr(encoder, name)
    batch = torch.randn(2, 3, 16, 8)
    assert torch.equal(loaded.vit(batch), encoder.vit(batch))
    assert loaded.state_hash() == encoder.state_hash()
    assert not loaded.vit.training
    assert all(parameter.requires_grad for parameter in loaded.vit.parameters())
    save_encoder(tmp_path / "again", loaded)
    for name in ("encoder.safetensors", "encoder.json"):
        assert (tmp_path / "enc" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "post"}, {"layer_scale": 0.1, "registers": 2}, {"class_token": False}]
)
def test_bfloat16_gives_nearly_the_same_rows(changes):
    encoder = make(dim=64, heads=4, depth=6, **changes)
    before = encoder.state_hash()
    reduced = with_precision(encoder, "bfloat16")
    batch = torch.randn(8, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    for tokens in ("mean", "patches") + (("class",) if encoder.vit.config.class_token else ()):
        exact, rough = encoder.features(batch, tokens), reduced.features(batch, tokens)
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, exact)
        assert torch.cosine_similarity(rough, exact, dim=-1).min() > 0.999
    assert reduced.vit.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert reduced.vit.blocks[0].norm1.weight.dtype == torch.float32
    assert encoder.state_hash() == before  # it was not changed by that
    assert torch.equal(with_precision(encoder, "float32").features(batch), encoder.features(batch))


def test_the_hash_is_of_all_that_decides_a_feature():
    encoder = make()
    hashes = {encoder.state_hash(), make(seed=1).state_hash()}
    for name, value in (
        ("mean", (0.5, 0.5, 0.5)),
        ("std", (1.0, 1.0, 1.0)),
        ("crop", 0.9),
        ("pooling", "mean"),
    ):
        other = make()
        setattr(other, name, value)
        hashes.add(other.state_hash())
    assert len(hashes) == 6
    encoder.licence = "another"
    assert encoder.state_hash() in hashes


def edit(folder, change):
    about = json.loads((folder / "encoder.json").read_text())
    change(about)
    (folder / "encoder.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "encoder.json").write_text("{"),
        lambda folder: (folder / "encoder.json").write_text("[]"),
        lambda folder: (folder / "encoder.safetensors").unlink(),
        lambda folder: os.truncate(folder / "encoder.safetensors", 100),
        lambda folder: edit(folder, lambda about: about.update(format_version=99)),
        lambda folder: edit(folder, lambda about: about.pop("mean")),
        lambda folder: edit(folder, lambda about: about.update(std=[0, 1, 1])),
        lambda folder: edit(folder, lambda about: about.update(mean=[0, 1])),
        lambda folder: edit(folder, lambda about: about.update(mean=[math.nan, 0, 0])),
        lambda folder: edit(folder, lambda about: about.update(std=[math.inf, 1, 1])),
        lambda folder: edit(folder, lambda about: about.update(pooling="max")),
        lambda folder: edit(folder, lambda about: about.update(history={"read": "x"})),
        lambda folder: edit(folder, lambda about: about.update(history=["read"])),
        lambda folder: edit(folder, lambda about: about["config"].update(depth=3)),
        lambda folder: edit(folder, lambda about: about["config"].update(dim=8)),
        lambda folder: edit(folder, lambda about: about["config"].update(colour="red")),
        lambda folder: (folder / "encoder.json").unlink(),
    ],
)
def test_damage_is_noticed(tmp_path, damage):
    save_encoder(tmp_path, make())
    damage(tmp_path)
    with pytest.raises(InputError):
        load_encoder(tmp_path)


def test_changed_weights_are_noticed(tmp_path):
    save_encoder(tmp_path, make())
    file = tmp_path / "encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="hash differs"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="no such"):
        load_encoder(tmp_path / "nothing")


def test_a_history_without_notes_has_none_to_tell(tmp_path):
    encoder = make()
    for entry in ({"read": "w.pth"}, {"read": "w.pth", "notes": 5}, {"step": "pretrain"}):
        encoder.history = [entry]
        assert foreign_notes(encoder) == []
    encoder.history, encoder.licence = [{"read": "w.pth", "notes": ["assumed"]}], "MIT"
    assert foreign_notes(encoder) == ["assumed", "licence: MIT"]


def test_prepared_images():
    encoder = make()
    plain = Image.new("RGB", (40, 30), (255, 0, 51))
    prepared = encoder.prepare(plain)
    assert prepared.shape == (3, 16, 8)
    assert prepared.dtype == torch.float32
    for channel, value in enumerate((1.0, 0.0, 0.2)):
        expected = (value - encoder.mean[channel]) / encoder.std[channel]
        torch.testing.assert_close(prepared[channel], torch.full((16, 8), expected))
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 8, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(exact)).permute(2, 0, 1)
    assert torch.equal(encoder.prepare(exact), encoder.normalise(pixels))  # nothing to resize


def test_the_crop_is_the_centre_in_the_encoders_aspect():
    encoder = make()
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 40:56] = 255  # a white bar as wide as what 16 × 8 pixels show of it
    white = encoder.prepare(Image.fromarray(wide))
    assert (white[:, :, 1:-1] > 2).all()  # a bicubic filter sees a little of what lies outside
    wide[:] = 255
    wide[:, 40:56] = 0
    assert (encoder.prepare(Image.fromarray(wide))[:, :, 1:-1] < -1.5).all()
    encoder.crop = 0.5
    tall = np.zeros((64, 32, 3), np.uint8)
    tall[16:48, 8:24] = 255
    assert (encoder.prepare(Image.fromarray(tall))[:, 1:-1, 1:-1] > 2).all()


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (7, 3000), (3, 3)])
def test_odd_sizes(size):
    for crop in (1.0, 0.875):
        encoder = make()
        encoder.crop = crop
        assert encoder.prepare(Image.new("RGB", size, (9, 9, 9))).isfinite().all()


def test_features():
    encoder = make(registers=1)
    batch = torch.randn(2, 3, 16, 8)
    tokens = encoder.vit(batch)
    assert torch.equal(encoder.features(batch), tokens[:, 0])
    assert torch.equal(encoder.features(batch, "mean"), pool(tokens, 2, "mean"))
    patches = encoder.features(batch, "patches")
    assert torch.equal(patches, tokens[:, 2:])
    assert encoder.dim("patches") == patches[0].numel() == 8 * 16
    assert encoder.dim() == 16
    assert patches.grad_fn is None
    bare = make(class_token=False)
    assert bare.features(batch).shape == (2, 16)
    with pytest.raises(InputError, match="class token"):
        bare.features(batch, "class")
    with pytest.raises(InputError, match="class token"):
        Encoder(bare.vit)
    with pytest.raises(InputError, match="channels"):
        make(channels=1)
    for wrong in ({"std": (0.2, 0.0, 0.2)}, {"std": (0.2, -1.0, 0.2)}, {"mean": (math.nan, 0.0, 0.0)}):
        with pytest.raises(InputError, match="cannot be normalised"):
            Encoder(encoder.vit, **wrong)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_an_encoder_for_another_shape(tmp_path, positions):
    encoder = make(positions=positions)
    batch = torch.randn(2, 3, 24, 32)
    other = resized(encoder, (24, 32))
    assert other.vit.config.image_size == (24, 32)
    assert torch.equal(other.vit(batch), encoder.vit(batch))  # as it does on the fly
    assert other.prepare(Image.new("RGB", (50, 50))).shape == (3, 24, 32)
    same = resized(encoder, (16, 8))
    assert torch.equal(same.vit.pos_embed, encoder.vit.pos_embed)
    save_encoder(tmp_path, other)
    assert torch.equal(load_encoder(tmp_path).vit(batch), other.vit(batch))
    assert encoder.vit.config.image_size == (16, 8)
    assert encoder.history == []
    for wrong in ((25, 32), (0, 8), (2, 2)):
        with pytest.raises(InputError, match="tile"):
            resized(encoder, wrong)
