"""Every foreign layout, on synthetic tensors: loaded, its outputs are those of a transformer wired by hand."""

import argparse
import json
import math
import os
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from firstlight.core.errors import InputError
from firstlight.vision.checkpoints import read_foreign
from firstlight.vision.checkpoints.layouts import LIKE_MAE
from firstlight.vision.encoder_file import foreign_notes, load_encoder, save_encoder
from firstlight.vision.positions import sincos_positions
from plain_vit import plain_vit, random_state

IMAGE = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(9))


def fixed(state, zero_row=True):
    """The state with positions of MAE: a zero row of the class token, then sines and cosines."""
    table = sincos_positions((3, 3), 16)
    rows = torch.cat([torch.zeros(1, 16), table]) if zero_row else table
    return state | {"pos_embed": rows[None]}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


def decoder(state):
    return {
        "mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 16),
        "decoder_pos_embed": torch.ones(1, 10, 8), "decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8),
        "decoder_norm.weight": torch.ones(8), "decoder_pred.bias": torch.ones(48),
    }  # fmt: skip


def mae():
    state = fixed(random_state())
    return {"model": state | decoder(state), "epoch": 799}, state, {}


def mae_encoder_only():
    state = fixed(random_state())
    return {"model": state}, state, {}


def mae_training_file():
    state = fixed(random_state())
    settings = argparse.Namespace(blr=1.5e-4, output_dir="here", device="cuda")
    return {"model": state, "optimizer": {"state": {}}, "args": settings, "scaler": {}}, state, {}


def mae_ws():
    state = fixed(random_state())
    return state, state, {}


def mae_ws_wrapped():
    state = fixed(random_state())
    return {"state_dict": state}, state, {}


def data2vec(prefix=""):
    state = random_state(rows=9, post=True)
    image = "modality_encoders.IMAGE."
    new = {
        f"{image}local_encoder.proj.weight": state["patch_embed.proj.weight"],
        f"{image}local_encoder.proj.bias": state["patch_embed.proj.bias"],
        f"{image}extra_tokens": state["cls_token"],
        f"{image}fixed_positional_encoder.positions": state["pos_embed"],
        f"{image}context_encoder.norm.weight": state["embed_norm.weight"],
        f"{image}context_encoder.norm.bias": state["embed_norm.bias"],
        f"{image}decoder.blocks.0.0.weight": torch.ones(2),
        "_ema": {"blocks.0.norm1.weight": torch.ones(16)},
    }
    new |= {name: tensor for name, tensor in state.items() if name.startswith("blocks.")}
    return {prefix + name: value for name, value in new.items()}, state


def data2vec_pretrained():
    weights, state = data2vec()
    return (
        {"model": weights, "cfg": {"model": {"_name": "data2vec_multi"}}, "args": None},
        state,
        {"post": True},
    )


def data2vec_finetuned():
    weights, state = data2vec("model.")
    weights.pop("model._ema")
    weights |= {"head.weight": torch.ones(10, 16), "fc_norm.weight": torch.ones(16)}
    return {"model": weights}, state, {"post": True}


def dbot():
    state = fixed(random_state(seed=3))
    return {"model": state | {"mask_token": torch.ones(1, 1, 16)}}, state, {}


def crossmae():
    state = fixed(random_state())
    state = without(state, "norm.weight", "norm.bias")
    extra = {
        "wfm.linear.weight": torch.ones(2, 3), "dec_norms.0.weight": torch.ones(16),
        "decoder_blocks.0.cross_attn.q.weight": torch.ones(8, 8), "mask_token": torch.ones(1, 1, 8),
    }  # fmt: skip
    norm = {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    return {"model": state | extra}, state | norm, {}


def refined(post):
    state = random_state(rows=9, post=post)
    content = without(state, "cls_token", "pos_embed") | {
        "cls_tokens.tokens": state["cls_token"],
        "pos_embed.embed": state["pos_embed"].reshape(1, 3, 3, 16),
    }
    return content, state


def refined_pre():
    content, state = refined(False)
    return {"state_dict": content}, state, {}


def refined_post():
    content, state = refined(True)
    return {"state_dict": content}, state, {"post": True}


def mae_ct():
    content, state = refined(False)
    settings = {"kind": "vit", "patch_size": 4, "dim": 16, "depth": 2, "num_attention_heads": 2}
    return {"state_dict": content, "ctor_kwargs": settings, "abs_ckpt": 5, "stage_id": "x"}, state, {}


def ibot():
    state = random_state()
    head = {"head.mlp.0.weight": torch.ones(4, 16), "head.last_layer.weight_g": torch.ones(4, 1)}
    teacher = prefixed("backbone.", state | {"masked_embed": torch.ones(1, 16)}) | head
    student = prefixed("module.backbone.", random_state(seed=8))
    return {"student": student, "teacher": teacher, "args": argparse.Namespace(arch="vit")}, state, {}


def dino_backbone():
    state = random_state()
    return state, state, {}


def dinov2():
    state = random_state(scale=True, registers=2)
    content = without(state, "reg_token") | {"register_tokens": state["reg_token"]}
    return content | {"mask_token": torch.ones(1, 16)}, state, {}


def mugs():
    state = random_state()
    heads = {
        "relation_blocks.0.norm1.weight": torch.ones(16), "group_head.mlp.0.weight": torch.ones(2, 16),
        "instance_head.mlp.0.bias": torch.ones(2),
    }  # fmt: skip
    return {"state_dict": prefixed("module.", prefixed("backbone.", state) | heads)}, state, {}


def ijepa():
    state = fixed(random_state(class_token=False), zero_row=False)
    other = prefixed("module.", random_state(class_token=False, seed=4))
    content = {"encoder": other, "target_encoder": prefixed("module.", state), "predictor": {}, "epoch": 300}
    return content, state, {}


def layer_grafting():
    state = random_state()
    momentum = prefixed("module.momentum_encoder.", state | {"head.0.weight": torch.ones(4, 16)})
    base = prefixed("module.base_encoder.", random_state(seed=7))
    return {"state_dict": momentum | base | {"module.predictor.0.weight": torch.ones(2, 2)}}, state, {}


def timm_learned():
    state = random_state()
    return state | {"head.weight": torch.ones(10, 16), "head.bias": torch.ones(10)}, state, {}


def like_deit():
    state = random_state()
    return {"model": state | {"head.weight": torch.ones(10, 16)}}, state, {}


def timm_registers():
    state = random_state(rows=9, registers=3, scale=True)
    return state, state, {}


def timm_average_pooled():
    state = random_state(rows=9, class_token=False)
    return state, state, {}


def hugging_face(state, prefix=""):
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
    }  # fmt: skip
    inside = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    content = {}
    for name, tensor in state.items():
        if name in names:
            content[names[name]] = tensor
            continue
        _, index, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        layer = f"encoder.layer.{index}."
        if part == "attn.qkv":
            for which, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                content[f"{layer}attention.attention.{which}.{kind}"] = piece.clone()
        else:
            content[f"{layer}{inside[part]}.{kind}"] = tensor
    return prefixed(prefix, content)


def vit_of_hugging_face():
    state = random_state()
    content = hugging_face(state) | {"pooler.dense.weight": torch.ones(16, 16)}
    return content, state, {"eps": 1e-12}


def vit_classifier_of_hugging_face():
    state = random_state()
    return hugging_face(state, "vit.") | {"classifier.weight": torch.ones(2, 16)}, state, {"eps": 1e-12}


def vitmae_of_hugging_face():
    state = fixed(random_state())
    extra = {"decoder.mask_token": torch.ones(1, 1, 8), "decoder.decoder_pos_embed": torch.ones(1, 10, 8)}
    return hugging_face(state, "vit.") | extra, state, {"eps": 1e-12}


def ijepa_of_hugging_face():
    state = random_state(rows=9, class_token=False)
    return hugging_face(state), state, {"eps": 1e-12}


def dinov2_of_hugging_face():
    state = random_state(scale=True, registers=2)
    names = {
        "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1",
        ".output.dense": ".mlp.fc2",
    }  # fmt: skip
    plain = {name: tensor for name, tensor in state.items() if ".ls" not in name and name != "reg_token"}
    content = {"embeddings.register_tokens": state["reg_token"], "embeddings.mask_token": torch.ones(1, 16)}
    for name, tensor in hugging_face(plain).items():
        for old, new in names.items():
            if "attention.output" not in name:
                name = name.replace(old, new)
        content[name] = tensor
    for index in range(2):
        for which in "12":
            gamma = state[f"blocks.{index}.ls{which}.gamma"]
            content[f"encoder.layer.{index}.layer_scale{which}.lambda1"] = gamma
    return content, state, {"eps": 1e-12}


LAYOUTS = [
    mae, mae_encoder_only, mae_training_file, mae_ws, mae_ws_wrapped, data2vec_pretrained, data2vec_finetuned, dbot,
    crossmae, refined_pre, refined_post, mae_ct, ibot, dino_backbone, dinov2, mugs, ijepa, layer_grafting,
    timm_learned, timm_registers, timm_average_pooled, vit_of_hugging_face, vit_classifier_of_hugging_face,
    vitmae_of_hugging_face, ijepa_of_hugging_face, dinov2_of_hugging_face,
]  # fmt: skip


def assert_outputs(encoder, state, options):
    depth = encoder.vit.config.depth
    found = encoder.vit.forward_intermediates(IMAGE[None], range(depth + 1))
    for index, expected in enumerate(plain_vit(state, IMAGE, 2, **options)):
        torch.testing.assert_close(found[index][0].double(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout(layout, tmp_path):
    content, state, options = layout()
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    encoder = load_encoder(path, heads=2)
    assert_outputs(encoder, state, options)
    config = encoder.vit.config
    assert (config.dim, config.depth, config.patch_size, config.image_size) == (16, 2, 4, (12, 12))
    assert config.norm == ("post" if options.get("post") else "pre")
    save_encoder(tmp_path / "enc", encoder)
    assert_outputs(load_encoder(tmp_path / "enc"), state, options)
    assert encoder.history[0]["read"] == "weights.pth"


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        (mae, "MAE"), (crossmae, "CrossMAE"), (data2vec_pretrained, "data2vec 2.0"), (refined_pre, "MIM-Refiner"),
        (ijepa, "I-JEPA"), (ibot, "iBOT or DINO"), (mugs, "Mugs"), (layer_grafting, "Layer-grafting"),
        (timm_learned, "timm"), (vit_of_hugging_face, "Hugging Face"), (mae_encoder_only, "MAE"), (mae_ws, "timm"),
        (dbot, LIKE_MAE), (like_deit, LIKE_MAE), (dinov2, "iBOT or DINO"),
    ],
)  # fmt: skip
def test_the_report(layout, source, tmp_path):
    content = layout()[0]
    torch.save(content, tmp_path / "w.pth")
    encoder, report = read_foreign(tmp_path / "w.pth", heads=2)
    assert report.source == source
    assert set(report.matched) == set(encoder.vit.state_dict())
    assert not report.missing
    assert not report.unexpected
    inner = next((content[key] for key in ("state_dict", "model", "teacher") if key in content), content)
    dropped = [name for name in inner if "decoder" in name or "mask_token" in name or "_ema" in name]
    assert set(dropped) <= set(report.dropped)


@pytest.mark.parametrize(
    ("layout", "licence"),
    [
        (mae, "weights of MAE: CC BY-NC 4.0"), (crossmae, "CrossMAE: CC BY-NC 4.0"), (ijepa, "I-JEPA: CC BY-NC 4.0"),
        (data2vec_pretrained, "MIT"), (ibot, "Apache 2.0"), (dinov2, "Apache 2.0"), (mugs, "Mugs: Apache 2.0"),
        (refined_pre, "not known.*CC BY-NC 4.0"), (like_deit, "not known.*MAE.*CC BY-NC 4.0"), (dbot, "not known"),
        (timm_learned, None), (vit_of_hugging_face, None),
    ],
)  # fmt: skip
def test_licences_go_with_the_source(layout, licence, tmp_path):
    torch.save(layout()[0], tmp_path / "w.pth")
    encoder = load_encoder(tmp_path / "w.pth", heads=2)
    if licence is None:
        assert encoder.licence is None
        return
    assert re.search(licence, encoder.licence)
    assert foreign_notes(encoder)[-1] == f"licence: {encoder.licence}"
    save_encoder(tmp_path / "enc", encoder)
    assert load_encoder(tmp_path / "enc").licence == encoder.licence


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_mae_ws_is_told_by_its_shape(wrapper, tmp_path):
    with torch.device("meta"):
        shapes = random_state(dim=2560, depth=1, ratio=1, size=14)
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()}
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "w.pth")
    encoder, report = read_foreign(tmp_path / "w.pth")
    assert report.source == "MAE-WS"
    assert "CC BY-NC 4.0" in encoder.licence


def test_pooling_goes_with_the_source(tmp_path):
    for layout, pooling in ((mae, "class"), (crossmae, "mean"), (ijepa, "mean")):
        torch.save(layout()[0], tmp_path / "w.pth")
        assert load_encoder(tmp_path / "w.pth", heads=2).pooling == pooling


def test_positions_that_are_never_trained_are_no_parameter(tmp_path):
    for layout, trained in (
        (mae, False), (ijepa, False), (data2vec_pretrained, False), (refined_pre, False), (dino_backbone, True),
    ):  # fmt: skip
        torch.save(layout()[0], tmp_path / "w.pth")
        vit = load_encoder(tmp_path / "w.pth", heads=2).vit
        assert ("pos_embed" in dict(vit.named_parameters())) == trained
    state = random_state(dim=16, rows=9, class_token=False)
    columns_first = sincos_positions((3, 3), 16).reshape(3, 3, 16).transpose(0, 1).reshape(1, 9, 16)
    torch.save(state | {"pos_embed": columns_first}, tmp_path / "w.pth")
    assert load_encoder(tmp_path / "w.pth", heads=2).vit.config.positions == "sincos"


def test_the_class_tokens_position_is_folded_into_the_token(tmp_path):
    for zero in (True, False):
        state = fixed(random_state()) if zero else random_state()
        torch.save(state, tmp_path / "w.pth")
        encoder, report = read_foreign(tmp_path / "w.pth", heads=2)
        assert torch.equal(encoder.vit.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
        assert torch.equal(encoder.vit.cls_token, state["cls_token"]) == zero
        assert encoder.vit.pos_embed.shape == (1, 9, 16)
        assert any("class token's position" in note for note in report.notes) != zero


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: without(s, "norm.weight", "norm.bias"), "2 missing: norm.bias, norm.weight"),
        (lambda s: without(s, "blocks.1.attn.proj.bias"), "1 missing: blocks.1.attn.proj.bias"),
        (
            lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(8)},
            "1 unexpected: blocks.0.attn.q_norm.weight",
        ),
        (lambda s: s | {"surprise": torch.ones(1)}, "1 unexpected: surprise"),
        (lambda s: s | {"step": 5}, "1 unexpected: step"),
        (lambda s: s | {"fc_norm.weight": torch.ones(16)}, "unexpected: fc_norm.weight"),
        (lambda s: s | {"mlp_tokens": torch.ones(1)}, "unexpected: mlp_tokens"),
        (lambda s: without(s, "pos_embed"), "pos_embed missing"),
        (lambda s: without(s, "patch_embed.proj.weight"), "known layout"),
        (lambda s: s | {"pos_embed": torch.ones(1, 11, 16)}, "11 positions"),
        (lambda s: without(s, "cls_token"), "10 positions"),
        (lambda s: s | {"pos_embed": torch.ones(16)}, "shape"),
        (lambda s: s | {"blocks.3.norm1.weight": torch.ones(16)}, "block 2 is missing"),
        (lambda s: s | {"blocks.999999999.x": torch.ones(1)}, "unexpected"),
        (lambda s: s | {"norm.bias": torch.ones(15)}, r"norm.bias has the shape \(15,\)"),
        (lambda s: s | {"blocks.0.mlp.fc2.weight": torch.ones(16, 32)}, "SwiGLU"),
        (lambda s: s | {"patch_embed.proj.weight": torch.ones(16, 3, 4, 2)}, "square"),
        (lambda s: s | {"backbone.patch_embed.proj.weight": torch.ones(1)}, "two weights"),
        (lambda s: s | {"reg_token": torch.ones(16)}, r"reg_token has the shape \(16,\)"),
        (lambda s: s | {"cls_token": torch.ones(1, 1, 8)}, "cls_token .* does not fit a width of 16"),
        (lambda s: s | {"pos_embed": torch.ones(1, 10, 8)}, "pos_embed .* does not fit a width of 16"),
        (lambda s: s | {"pos_embed": torch.ones(1, 0, 16)}, "pos_embed is empty"),
        (
            lambda s: s | {"patch_embed.proj.weight": torch.ones(16, 3, 0, 0)},
            "patch_embed.proj.weight is empty",
        ),
        (
            lambda s: s | {"patch_embed.proj.weight": torch.ones(0, 3, 4, 4)},
            "patch_embed.proj.weight is empty",
        ),
        (
            lambda s: (
                s | {f"blocks.0.mlp.fc{n}.weight": torch.ones(((0, 16), (16, 0))[n - 1]) for n in (1, 2)}
            ),
            "fc1.weight is empty",
        ),
        (
            lambda s: s | {"norm.weight": torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8)},
            "norm.weight holds quantised",
        ),
        (lambda s: s | {"norm.weight": torch.ones(16, dtype=torch.complex64)}, "norm.weight holds complex"),
        (
            lambda s: s | {"norm.weight": torch.ones(16).to_sparse()},
            "norm.weight holds quantised or sparse|read",
        ),
        (
            lambda s: s | {"norm.bias": torch.full((16,), math.nan)},
            "norm.bias holds numbers that are not finite",
        ),
        (
            lambda s: s | {"norm.bias": torch.full((16,), 1e39, dtype=torch.float64)},
            "norm.bias holds numbers that are not finite",
        ),
    ],
)
def test_what_does_not_fit_is_listed(change, problem, tmp_path):
    torch.save(change(random_state()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=problem):
        load_encoder(tmp_path / "w.pth", heads=2)


def test_a_missing_key_matrix_is_named(tmp_path):
    content = hugging_face(random_state())
    content.pop("encoder.layer.1.attention.attention.key.weight")
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"1 missing: blocks.1.attn.qkv.weight\n2 unexpected"):
        load_encoder(tmp_path / "w.pth", heads=2)


@pytest.mark.parametrize(
    ("dim", "heads"),
    [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16), (2560, 32), (16, None)],
)
def test_heads_by_width(dim, heads, tmp_path):
    with torch.device("meta"):
        shapes = random_state(dim=dim, depth=1, ratio=1)
    state = {
        name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()
    }  # one number on disk
    torch.save(state, tmp_path / "w.pth")
    if heads is None:
        with pytest.raises(InputError, match="heads at width 16 cannot be told"):
            load_encoder(tmp_path / "w.pth")
    else:
        encoder = load_encoder(tmp_path / "w.pth")
        assert encoder.vit.config.heads == heads
        assert encoder.vit.config.mlp_ratio == 1
    with pytest.raises(InputError, match="cannot be 7"):
        load_encoder(tmp_path / "w.pth", heads=7)


def test_settings_in_the_file_tell_heads(tmp_path):
    torch.save(mae_ct()[0], tmp_path / "w.th")
    assert load_encoder(tmp_path / "w.th").vit.config.heads == 2


@pytest.mark.parametrize(
    ("rows", "size", "side"), [(785, 8, 224), (784, 16, 448), (197, 16, 224), (196, 16, 224), (257, 14, 224)]
)
def test_published_numbers_of_positions(rows, size, side, tmp_path):
    state = random_state(rows=rows, size=size, depth=1, class_token=rows % 2 == 1)
    torch.save(state, tmp_path / "w.pth")
    assert load_encoder(tmp_path / "w.pth", heads=2).vit.config.image_size == (side, side)


def test_half_precision_becomes_single(tmp_path):
    state = {name: tensor.half() for name, tensor in random_state().items()}
    torch.save(state, tmp_path / "w.pth")
    encoder = load_encoder(tmp_path / "w.pth", heads=2)
    assert {tensor.dtype for tensor in encoder.vit.state_dict().values()} == {torch.float32}


def test_a_folder_of_hugging_face(tmp_path):
    state = random_state()
    save_file(hugging_face(state), tmp_path / "model.safetensors")
    settings = {"num_attention_heads": 2, "layer_norm_eps": 1e-3, "hidden_act": "gelu", "image_size": 12}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    images = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    (tmp_path / "README.md").write_text("---\ntags: x\nlicense: apache-2.0\n---\n# A model\n")
    encoder = load_encoder(tmp_path)
    assert_outputs(encoder, state, {"eps": 1e-3})
    assert (encoder.mean, encoder.std, encoder.licence) == ((0.5,) * 3, (0.25,) * 3, "apache-2.0")
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_act": "gelu_new"}))
    with pytest.raises(InputError, match="gelu_new"):
        load_encoder(tmp_path)


def test_a_folder_of_timm_with_oblong_images(tmp_path):
    state = random_state(rows=11)
    save_file(state, tmp_path / "model.safetensors")
    about = {
        "architecture": "vit_tiny",
        "pretrained_cfg": {
            "input_size": [3, 8, 20], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop_pct": 0.9,
            "license": "mit",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(about))
    encoder = load_encoder(tmp_path, heads=2)
    assert encoder.vit.config.image_size == (8, 20)
    assert (encoder.mean, encoder.crop, encoder.licence) == ((0.5, 0.4, 0.3), 0.9, "mit")


@pytest.mark.parametrize(
    ("file", "about", "problem"),
    [
        ("preprocessor_config.json", {"image_mean": ["a", "b", "c"]}, "images' mean cannot be"),
        ("preprocessor_config.json", {"image_mean": [None, 0.5, 0.5]}, "images' mean cannot be"),
        ("preprocessor_config.json", {"image_std": [0.25, 0.0, 0.25]}, "images' std cannot be"),
        ("preprocessor_config.json", {"image_std": [0.25, -1, 0.25]}, "images' std cannot be"),
        ("preprocessor_config.json", {"image_mean": [math.nan, 0, 0]}, "images' mean cannot be"),
        ("preprocessor_config.json", {"image_std": [0.25, math.inf, 1]}, "images' std cannot be"),
        ("config.json", {"layer_norm_eps": -1e-6}, "norm_eps: it should be greater than 0"),
        ("config.json", {"layer_norm_eps": math.nan}, "norm_eps"),
    ],
)
def test_settings_beside_the_weights_that_cannot_be(file, about, problem, tmp_path):
    save_file(random_state(), tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(about))
    with pytest.raises(InputError, match=problem):
        load_encoder(tmp_path, heads=2)


@pytest.mark.parametrize("new_format", [True, False])
def test_torn_files_are_refused_however_they_are_torn(new_format, tmp_path):
    """Cut off, or with bytes flipped anywhere: the one error, or weights (of flips in their numbers)."""
    path = tmp_path / "w.pth"
    torch.save({"model": random_state(depth=1)}, path, _use_new_zipfile_serialization=new_format)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    told = set()
    for turn in range(150):
        torn = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(len(torn), size=turn % 4 * 4)
        if turn % 3:  # names and numbers of the archive stand at its ends
            places = np.where(places % 2, places % 600, len(torn) - 1 - places % 1500)
        torn[places] = rng.integers(256, size=len(places))
        path.write_bytes(torn[: len(torn) if turn % 4 else int(rng.integers(len(torn)))].tobytes())
        try:
            load_encoder(path, heads=2)
        except InputError as error:
            told.add(str(error))
    assert len(told) > 3


def test_want_of_memory_is_not_called_a_torn_file(tmp_path, monkeypatch):
    """A torn file may ask for more than there is, too: what is said holds for both."""
    path = tmp_path / "w.pth"
    torch.save({"model": random_state(depth=1)}, path)

    def starved(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", starved)
        with pytest.raises(InputError, match="not enough memory") as caught:
            load_encoder(path, heads=2)
    assert "no readable checkpoint" not in str(caught.value)
    assert isinstance(load_encoder(path, heads=2).vit, torch.nn.Module)
    path.write_bytes(b"\x80\x04\x8e" + (2**50).to_bytes(8, "little") + b"x.")  # a string of a petabyte
    with pytest.raises(InputError, match="not enough memory to read this file of 13 bytes"):
        load_encoder(path, heads=2)


def test_folders_without_an_encoder(tmp_path):
    with pytest.raises(InputError, match="no encoder here"):
        load_encoder(tmp_path)


class Evil:
    """Would leave a file behind, were it ever unpickled."""

    def __init__(self, target, how):
        self.target, self.how = target, how

    def __reduce__(self):
        command = f"touch {self.target}"
        if self.how == "system":
            return os.system, (command,)
        if self.how == "eval":
            return eval, (f"__import__('os').system({command!r})",)
        if self.how == "import":
            return __import__, ("os",)
        inner = pickle.dumps(Evil(self.target, "system"))
        return (
            (pickle.loads, (inner,)) if self.how == "nested" else (torch.storage._load_from_bytes, (inner,))
        )


@pytest.mark.parametrize("how", ["system", "eval", "import", "nested", "torch"])
@pytest.mark.parametrize("place", ["beside", "inside", "top"])
@pytest.mark.parametrize("new_format", [True, False])
def test_malicious_pickles_are_refused(how, place, new_format, tmp_path):
    mark = tmp_path / "executed"
    evil = Evil(mark, how)
    state = random_state()
    content = {
        "beside": {"model": state, "cfg": evil},
        "inside": {"model": state | {"x": evil}},
        "top": evil,
    }[place]
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match=r"refused|cannot|no readable"):
        load_encoder(tmp_path / "w.pt", heads=2)
    assert not mark.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    torch.save({"model": random_state(), "cfg": Evil(tmp_path / "x", "system")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system.*refused"):
        load_encoder(tmp_path / "w.pt")
    assert not (tmp_path / "x").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "x").exists()  # so these files are what they are said to be


@pytest.fixture
def fairseq(monkeypatch):
    """Settings classes as fairseq and omegaconf pickle them, gone again before the file is read."""
    ran = []

    def module(name):
        made = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    def rebuild(self, state):
        ran.append(state)

    for path, names in {
        "omegaconf.dictconfig": ("DictConfig",),
        "fairseq.dataclass.constants": ("Choice",),
    }.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            made = module(".".join(parts[:end]))
        for name in names:
            setattr(made, name, type(name, (), {"__module__": path, "__setstate__": rebuild}))
    return sys.modules, ran


@pytest.mark.parametrize("new_format", [True, False])
def test_settings_of_fairseq_become_stubs(fairseq, new_format, tmp_path):
    modules, ran = fairseq
    config = modules["omegaconf.dictconfig"].DictConfig()
    config.content = {"a": 1}
    choice = modules["fairseq.dataclass.constants"].Choice()
    choice.value = defaultdict(dict, {"b": {"c": {1, 2}}})
    weights, state = data2vec()
    content = {
        "model": OrderedDict(weights), "cfg": config, "task_state": [choice, np.float64(1.5), np.arange(3)],
        "extra_state": {"best": complex(1, 2), "seen": frozenset([1]), "device": torch.device("cpu")},
    }  # fmt: skip
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    encoder = load_encoder(tmp_path / "w.pt", heads=2)
    assert_outputs(encoder, state, {"post": True})
    assert ran == []


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "script", "list", "number", "no weights"])
def test_files_that_are_no_checkpoints(damage, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": random_state()}, path)
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "text":
        path.write_text("hello")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "script":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/constants.pkl", b"")
    else:
        torch.save({"list": [1], "number": 5, "no weights": {"epoch": 3}}[damage], path)
    with pytest.raises(InputError):
        load_encoder(path)
    if damage in ("truncated", "text", "empty"):
        path.rename(tmp_path / "w.safetensors")
        with pytest.raises(InputError):
            load_encoder(tmp_path / "w.safetensors")
