"""Features and parts of the data: which images, which layers, in which order; and fine-tuning."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from drawn import draw_classes
from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.evaluation import encoder_features
from firstlight.evaluation.encoder_config import FinetuneConfig
from firstlight.evaluation.encoder_data import open_labelled
from firstlight.evaluation.encoder_features import Layer, encoder_layers, extract, small_pixels
from firstlight.evaluation.encoder_finetune import Classifier, augmented, finetune
from firstlight.vision.encoder_file import Encoder
from firstlight.vision.images import open_images
from firstlight.vision.vit import ViT, ViTConfig, pool


def encoder(**changes):
    shape = {"image_size": (16, 16), "patch_size": 4, "dim": 32, "depth": 4, "heads": 2}
    config = ViTConfig(**shape | changes)
    return Encoder(
        ViT(config, torch_stream(0, "test")).eval(), pooling="class" if config.class_token else "mean"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_classes(tmp_path_factory.mktemp("images") / "all", 6)


def test_layers_are_all_blocks_and_the_output():
    layers = encoder_layers(encoder())
    assert [layer.block for layer in layers[::2]] == [0, 1, 2, 3, 4]
    assert {layer.pooling for layer in layers} == {"class", "mean"}
    assert encoder_layers(encoder(class_token=False, final_norm=False), []) == [
        Layer(b, "mean") for b in range(4)
    ]
    deep = encoder_layers(encoder(depth=6), [0, 9])
    assert sorted({layer.block for layer in deep}) == [0, 2, 3, 4, 5, 6]


def test_features_are_the_pooled_tokens_of_each_block(folder, monkeypatch):
    images, model = open_images(folder), encoder()
    rows = np.array([3, 0, 17, 5, 9])
    whole = extract(model, images, rows, encoder_layers(model))
    batch = torch.stack([model.prepare(images.load(row)) for row in rows])
    with torch.no_grad():
        tokens = model.vit.forward_intermediates(batch, range(5))
    assert whole.rows.tolist() == rows.tolist()
    for layer, values in whole.layers.items():
        assert torch.allclose(values, pool(tokens[layer.block], 1, layer.pooling), atol=1e-5)
    assert torch.allclose(whole.pixels, batch.flatten(1))
    monkeypatch.setattr(encoder_features, "_MOST_IMAGES", 2)
    cut = extract(model, images, rows, encoder_layers(model))
    assert all(torch.allclose(values, cut.layers[layer], atol=1e-5) for layer, values in whole.layers.items())


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path):
    folder = draw_classes(tmp_path / "images", 2)
    (folder / "green" / "0.png").write_bytes(b"no picture")
    told = []
    model, images = encoder(), open_images(folder)
    found = extract(
        model, images, np.arange(6), [Layer(0, "mean")], lambda name, **values: told.append((name, values))
    )
    assert found.rows.tolist() == [0, 1, 3, 4, 5]
    assert [len(found.layers[Layer(0, "mean")]), len(found.pixels)] == [5, 5]
    assert any(name == "message" and "green/0.png" in values["text"] for name, values in told)


def test_pixels_are_averaged_down_to_at_most_32():
    images = torch.arange(2 * 3 * 96 * 64, dtype=torch.float32).view(2, 3, 96, 64)
    small = small_pixels(images)
    assert small.shape == (2, 3 * 32 * 21)
    assert small.mean() == pytest.approx(float(images.mean()), rel=1e-4)
    assert small_pixels(images[:, :, :8, :8]).shape == (2, 3 * 8 * 8)


def test_a_share_of_every_class_becomes_queries(folder):
    found = open_labelled(folder, holdout=0.3)
    assert found.classes == ["blue", "green", "red"]
    assert np.bincount(found.queries.labels).tolist() == [2, 2, 2]
    assert np.bincount(found.bank.labels).tolist() == [4, 4, 4]
    assert not set(found.bank.rows) & set(found.queries.rows)


def test_sub_folders_are_parts_and_classes_go_by_name(tmp_path):
    draw_classes(tmp_path / "set" / "train", 3)
    draw_classes(tmp_path / "set" / "val", 2, seed=1)
    for file in (tmp_path / "set" / "train" / "blue").iterdir():
        file.unlink()
    found = open_labelled(tmp_path / "set")
    assert (found.bank.name, found.queries.name) == ("train", "val")
    assert found.classes == ["blue", "green", "red"]
    assert found.bank.labels.tolist() == [1] * 3 + [2] * 3
    assert found.queries.labels.tolist() == [0, 0, 1, 1, 2, 2]
    swapped = open_labelled(tmp_path / "set", "val/train")
    assert len(swapped.bank.rows) == 6


def test_a_parquet_file_says_which_part_a_row_belongs_to(folder, tmp_path):
    images = [(folder / name / f"{i}.png").read_bytes() for i in range(4) for name in ("red", "blue")]
    frame = pl.DataFrame(
        {
            "picture": images,
            "kind": ["red", "blue"] * 4,
            "split": ["train"] * 4 + ["valid"] * 2 + ["spare"] * 2,
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    found = open_labelled(tmp_path / "a.parquet", label_column="kind")
    assert (found.bank.name, found.queries.name, found.classes) == ("train", "valid", ["blue", "red"])
    assert (found.bank.labels.tolist(), found.queries.labels.tolist()) == ([1, 0, 1, 0], [1, 0])
    tail = open_labelled(tmp_path / "a.parquet", label_column="kind", ratio=2)
    assert np.bincount(tail.bank.labels).tolist() == [2, 1]
    with pytest.raises(InputError, match="no classes"):
        open_labelled(tmp_path / "a.parquet")


@pytest.mark.parametrize("split", ["train", "train/", "/valid"])
def test_a_split_that_does_not_name_two_parts_is_refused(folder, split):
    with pytest.raises(InputError, match="two parts"):
        open_labelled(folder, split)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_fine_tuning_learns_and_leaves_the_encoder_alone(folder, device):
    model, images = encoder(), open_labelled(folder, holdout=0.34)
    model.vit.to(device)
    before = {name: value.clone() for name, value in model.vit.state_dict().items()}
    config = FinetuneConfig(
        epochs=12, batch_size=12, base_rate=0.05, warmup_epochs=1, min_scale=0.5, augment="plain"
    )
    losses = []

    def listen(name, **values):
        if name == "epoch":
            losses.append(values["loss"])

    right = finetune(model, images, config, seed=0, emit=listen)
    assert right.shape == (6,)
    assert right.mean() > 0.6
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.vit.state_dict().items())
    assert (finetune(model, images, config, seed=0) == right).all()


def test_strong_augmentation_is_another_training_and_repeats(folder):
    model, images = encoder(), open_labelled(folder, holdout=0.34)

    def losses(**changes):
        found = []
        config = FinetuneConfig(epochs=3, batch_size=6, base_rate=0.01, min_scale=0.5, **changes)

        def listen(name, **values):
            if name == "epoch":
                found.append(values["loss"])

        finetune(model, images, config, seed=0, emit=listen)
        return found

    off = {"operations": 0, "mixup": 0, "cutmix": 0, "erasing": 0, "drop_path": 0}
    plain = losses(augment="plain")
    assert losses(augment="strong", **off) == pytest.approx(plain, abs=1e-6)
    whole = losses()
    assert whole == losses(augment="strong")  # with all labels it is the default
    assert len({tuple(whole), tuple(plain)}) == 2
    for name, on in (
        ("operations", 2),
        ("mixup", 0.8),
        ("cutmix", 1.0),
        ("erasing", 1.0),
        ("drop_path", 0.5),
    ):
        assert losses(augment="strong", **off | {name: on}) != pytest.approx(plain, abs=1e-6), name


def test_augmentation_follows_the_share_of_labels_and_the_width():
    """§4.3 and §4.4: plain with 1 %, strong from 10 % on; drop path by size, more with all labels."""
    assert [FinetuneConfig(share=part).strong for part in (0.01, 0.1, 1.0)] == [False, True, True]
    chances = {
        part: [FinetuneConfig(share=part).drop_path_of(dim) for dim in (192, 1024, 1280, 2560)]
        for part in (0.01, 0.1, 1.0)
    }
    assert chances == {0.01: [0, 0, 0, 0], 0.1: [0.1, 0.1, 0.2, 0.3], 1.0: [0.1, 0.2, 0.3, 0.3]}
    assert FinetuneConfig(drop_path=0.05).drop_path_of(1024) == 0.05
    assert FinetuneConfig(share=0.01, augment="strong").drop_path_of(1024) == 0.1


def test_what_training_sees_of_an_image(folder):
    model, image = encoder(), open_images(folder).load(0)
    plain = augmented(image, model, FinetuneConfig(augment="plain"), np.random.default_rng(0))
    strong = augmented(image, model, FinetuneConfig(), np.random.default_rng(0))
    only_crop = FinetuneConfig(operations=0, erasing=0)
    assert plain.shape == strong.shape == (3, 16, 16)
    assert torch.equal(augmented(image, model, only_crop, np.random.default_rng(0)), plain)
    assert not torch.equal(strong, plain)


def test_branches_are_skipped_in_training_alone():
    model = Classifier(encoder(), 3, torch_stream(0, "head"), drop_path=0.9)
    images = torch.randn(4, 3, 16, 16, generator=torch_stream(0, "images"))
    first, second = (model.train()(images, torch_stream(seed, "skipped")) for seed in (0, 1))
    assert not torch.allclose(first, second)
    assert torch.equal(model.eval()(images, torch_stream(0, "skipped")), model.train()(images))


def test_building_a_classifier_reads_no_global_generator():
    before = torch.random.get_rng_state()
    Classifier(encoder(), 3, torch_stream(0, "head"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fine_tuning_slows_down_towards_the_input_and_frees_the_positions():
    model = Classifier(encoder(), 3, torch_stream(0, "head"))
    groups = model.groups(FinetuneConfig(layer_decay=0.5, weight_decay=0.1))
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    assert len(by_parameter) == len(list(model.parameters()))
    named = {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}
    scales = {name: named[name]["lr_scale"] for name in ("vit.pos_embed", "vit.blocks.0.mlp.fc1.weight")}
    assert scales == {"vit.pos_embed": 0.5**5, "vit.blocks.0.mlp.fc1.weight": 0.5**4}
    assert named["head.weight"]["lr_scale"] == named["vit.norm.weight"]["lr_scale"] == 1
    decayed = {name for name, group in named.items() if group["weight_decay"] > 0}
    assert "head.weight" in decayed
    assert decayed.isdisjoint({"vit.pos_embed", "vit.cls_token", "head.bias", "vit.norm.weight"})
