"""The vision transformer: equal to one wired by hand, and true to what it says of itself."""

import math

import pytest
import torch
from pydantic import ValidationError

from firstlight.core.seeds import torch_stream
from firstlight.vision import layers
from firstlight.vision.positions import resize_positions, sincos_positions
from firstlight.vision.vit import ViT, ViTConfig, pool
from plain_vit import plain_vit, random_state

TINY = ViTConfig(image_size=(12, 12), patch_size=4, dim=16, depth=4, heads=2)


def loaded(config, state):
    vit = ViT(config, None)
    vit.load_state_dict(state, assign=True)
    return vit


def images(n=3, height=12, width=12, seed=5):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


VARIANTS = {
    "pre": ({}, {}),
    "post": ({"norm": "post"}, {"post": True}),
    "no class token": ({"class_token": False}, {"class_token": False}),
    "registers and scale": ({"registers": 3, "layer_scale": 0.1}, {"registers": 3, "scale": True}),
    "learned positions": ({"positions": "learned"}, {}),
    "wide hidden layer": ({"mlp_ratio": 6.0, "norm_eps": 1e-3}, {"ratio": 6}),
    "oblong": ({"image_size": (8, 20)}, {"rows": 10}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_one_wired_by_hand(variant):
    changes, shape = VARIANTS[variant]
    config = TINY.model_copy(update=changes)
    state = random_state(**{"depth": 4, "rows": 9} | shape)
    batch = images(2, *config.image_size)
    tokens = loaded(config, state)(batch)
    between = loaded(config, state).forward_intermediates(batch, range(5))
    for row, image in enumerate(batch):
        expected = plain_vit(state, image, 2, post=config.norm == "post", eps=config.norm_eps)
        torch.testing.assert_close(tokens[row].double(), expected[-1], rtol=1e-4, atol=1e-4)
        for index, output in between.items():
            torch.testing.assert_close(output[row].double(), expected[index], rtol=1e-4, atol=1e-4)


def test_intermediates_are_raw_and_the_final_norm_touches_only_the_last():
    vit = ViT(TINY, torch_stream(0, "vit"))
    before = vit.forward_intermediates(images(), (1, 3, 4))
    with torch.no_grad():
        vit.norm.weight.mul_(3).add_(1)
    after = vit.forward_intermediates(images(), (1, 3, 4))
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[3], after[3])
    assert not torch.allclose(before[4], after[4])
    torch.testing.assert_close(after[4], vit.finish(after[3]))
    torch.testing.assert_close(after[4], vit(images()))


def test_of_a_post_norm_encoder_the_last_block_is_the_final_output():
    vit = ViT(TINY.model_copy(update={"norm": "post"}), torch_stream(0, "vit"))
    found = vit.forward_intermediates(images(), (3, 4))
    assert torch.equal(found[3], found[4])
    assert not any(name.startswith("norm.") for name in vit.state_dict())


def test_one_run_whatever_the_number_of_outputs():
    vit = ViT(TINY, torch_stream(0, "vit"))
    calls = []
    for index, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    assert list(vit.forward_intermediates(images(), (4, 0, 2, 1, 3))) == [4, 0, 2, 1, 3]
    assert calls == [0, 1, 2, 3]
    calls.clear()
    vit.forward_intermediates(images(), (1,))
    assert calls == [0, 1]  # what nobody asks for is not run
    for wrong in ((), (5,), (-1,)):
        with pytest.raises(ValueError):
            vit.forward_intermediates(images(), wrong)


def test_positions_of_mae():
    """The layout of MAE's table: halves for column and row, each sines then cosines of falling frequency."""
    table = sincos_positions((2, 3), 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for coordinate in (column, row):
                angles = [coordinate / 10_000 ** (i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * 3 + column], torch.tensor(expected))
    vit = ViT(TINY, torch_stream(0, "vit"))
    assert torch.equal(vit.pos_embed[0], sincos_positions((3, 3), 16))
    assert "pos_embed" not in dict(vit.named_parameters())
    learned = ViT(TINY.model_copy(update={"positions": "learned"}), torch_stream(0, "vit"))
    assert "pos_embed" in dict(learned.named_parameters())


@pytest.mark.parametrize(("patch", "side", "grid"), [(14, 98, (7, 7)), (16, 96, (6, 6)), (16, 224, (14, 14))])
def test_positions_of_other_sizes(patch, side, grid):
    native = 224 // patch
    config = ViTConfig(image_size=(224, 224), patch_size=patch, dim=8, depth=1, heads=2)
    vit = ViT(config, torch_stream(0, "vit"))
    assert vit.grid(torch.empty(1, 3, side, side)) == grid
    assert vit.embed(torch.zeros(1, 3, side, side)).shape == (1, grid[0] * grid[1], 8)
    moved = vit.positions(grid)
    if grid == (native, native):
        assert moved is vit.pos_embed
        return
    table = vit.pos_embed.reshape(1, native, native, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(moved, expected.permute(0, 2, 3, 1).reshape(1, -1, 8))


def test_resized_positions_keep_rows_and_columns_apart():
    ramp = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij"), dim=-1)
    half = resize_positions(ramp.reshape(1, 48, 2), (8, 6), (4, 3)).reshape(4, 3, 2)
    torch.testing.assert_close(half[:, 1, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(half[1, :, 1], torch.tensor([0.5, 2.5, 4.5]), atol=0.1, rtol=0)
    flat = torch.ones(1, 48, 2)
    torch.testing.assert_close(resize_positions(flat, (8, 6), (5, 7)), torch.ones(1, 35, 2))


def test_images_of_any_shape_that_patches_tile():
    vit = ViT(TINY, torch_stream(0, "vit"))
    assert vit(images(2, 8, 20)).shape == (2, 11, 16)
    assert vit(images(2, 4, 4)).shape == (2, 2, 16)
    for wrong in ((10, 12), (12, 0)):
        with pytest.raises(ValueError, match="tile"):
            vit(torch.zeros(1, 3, *wrong))


def test_dropped_patches_leave_prefix_and_positions():
    """What MAE does: patches are embedded, some are dropped, then the prefix is put before the rest."""
    vit = ViT(TINY.model_copy(update={"registers": 2}), torch_stream(0, "vit"))
    patches = vit.embed(images())
    assert vit.prefix == 3
    tokens = vit.with_prefix(patches[:, [4, 0]])
    assert tokens.shape == (3, 5, 16)
    assert torch.equal(tokens[:, 3:], patches[:, [4, 0]])
    assert torch.equal(tokens[1, :1], vit.cls_token[0])
    assert torch.equal(tokens[1, 1:3], vit.reg_token[0])
    last, found = vit.run(tokens, (3,))
    assert torch.equal(last, found[3])


def test_pooling():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(pool(tokens, 1, "class"), tokens[:, 0])
    assert torch.equal(pool(tokens, 2, "mean"), (tokens[:, 2] + tokens[:, 3]) / 2)
    assert torch.equal(
        pool(tokens, 2, "class+mean"), torch.cat([tokens[:, 0], (tokens[:, 2] + tokens[:, 3]) / 2], 1)
    )
    assert torch.equal(pool(tokens, 0, "mean"), tokens.mean(1))
    with pytest.raises(ValueError, match="class token"):
        pool(tokens, 0, "class")


def test_starts_come_from_the_stream_alone():
    torch.manual_seed(1)
    one = ViT(TINY.model_copy(update={"layer_scale": 0.1, "registers": 1}), torch_stream(3, "vit"))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # the global generator was not touched
    torch.use_deterministic_algorithms(True)  # fills memory that is not set with NaN
    try:
        two = ViT(TINY.model_copy(update={"layer_scale": 0.1, "registers": 1}), torch_stream(3, "vit"))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in two.state_dict().items():
        assert torch.equal(tensor, one.state_dict()[name]), name
    other = ViT(TINY, torch_stream(4, "vit"))
    assert not torch.equal(other.blocks[0].attn.qkv.weight, one.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("tokens", [3, 65, layers.WRITTEN_OUT + 1])
@pytest.mark.parametrize(("kind", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)])
def test_attention_is_that_of_the_formula_forward_and_backward(tokens, kind, allowed):
    rng = torch_stream(0, "attention")
    q, k, v, push = (torch.randn(2, 2, tokens, 8, generator=rng).to(kind) for _ in range(4))

    def found(attention, kind):
        given = [x.detach().to(kind).requires_grad_() for x in (q, k, v)]
        out = attention(*given)
        out.backward(push.to(kind))
        return [out.detach(), *(x.grad for x in given)]

    def formula(q, k, v):
        return (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1) @ v

    for ours, exact in zip(found(layers.attend, kind), found(formula, torch.float64), strict=True):
        assert ours.dtype == kind
        assert (ours.double() - exact).norm() < allowed * exact.norm()


def test_starts_are_those_of_mae():
    config = ViTConfig(image_size=(32, 32), patch_size=8, dim=64, depth=2, heads=4, positions="learned")
    vit = ViT(config, torch_stream(0, "vit"))
    for weight in (vit.blocks[0].attn.qkv.weight, vit.blocks[1].mlp.fc1.weight, vit.patch_embed.proj.weight):
        flat = weight.flatten(1)
        bound = math.sqrt(6 / sum(flat.shape))
        assert 0.98 * bound < flat.abs().max() <= bound
        assert flat.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert 0 < vit.cls_token.abs().max() <= 0.04
    assert not vit.blocks[0].mlp.fc1.bias.any()
    assert (vit.norm.weight == 1).all()


def test_drop_path_drops_whole_branches_of_single_images():
    config = TINY.model_copy(update={"drop_path": 0.5})
    vit = ViT(config, torch_stream(0, "vit")).train()
    batch = images(1).expand(64, -1, -1, -1)
    same = vit(batch)
    assert torch.allclose(same[0], same[1])
    assert torch.equal(vit.eval()(batch, torch_stream(0, "drop")), same)  # evaluation drops nothing
    vit.train()
    found = vit.forward_intermediates(batch, (0, 1, 2, 3), torch_stream(0, "drop"))
    again = vit.forward_intermediates(batch, (0, 1, 2, 3), torch_stream(0, "drop"))
    kinds = [len(torch.unique(found[block].flatten(1).round(decimals=3), dim=0)) for block in range(4)]
    assert kinds[0] == 1  # the first block drops nothing, the second one branch of 4 images in 6, …
    assert kinds[1] == 4
    assert kinds[3] > 16
    assert all(torch.equal(found[block], again[block]) for block in range(4))
    # the second block: attention and MLP, each kept with chance 5/6 and then weighted by 6/5
    before = found[0]
    block = vit.blocks[1]
    branch = block.attn(block.norm1(before)) * 6 / 5
    inside = before + branch
    options = [before, inside]
    options += [option + block.mlp(block.norm2(option)) * 6 / 5 for option in options]
    distance = torch.stack([(found[1] - option).abs().amax((1, 2)) for option in options])
    assert (distance.min(0).values < 1e-4).all()
    assert len(distance.argmin(0).unique()) == 4


def test_checkpointed_activations_change_nothing_but_memory():
    config = TINY.model_copy(update={"drop_path": 0.3})
    gradients = []
    for checkpointed in (False, True):
        vit = ViT(config, torch_stream(0, "vit")).train()
        vit.checkpoint_activations = checkpointed
        calls = []
        vit.blocks[2].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        out = vit(images(), torch_stream(0, "drop"))
        out.square().sum().backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
        assert len(calls) == 1 + checkpointed
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_frozen_blocks_and_stem_record_no_graph_and_never_move():
    vit = ViT(TINY.model_copy(update={"positions": "learned"}), torch_stream(0, "vit"))
    vit.freeze(2)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    found = vit.forward_intermediates(images(), (1, 2))
    assert found[1].grad_fn is None
    assert found[2].grad_fn is not None
    optimiser = torch.optim.SGD([p for p in vit.parameters() if p.requires_grad], lr=0.1)
    vit(images()).square().sum().backward()
    optimiser.step()
    moved = {name for name, tensor in vit.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.startswith(("blocks.0.", "blocks.1.", "patch", "cls", "pos"))}
    assert moved.isdisjoint(frozen)
    assert {name for name in before if name.startswith(("blocks.2.", "blocks.3."))} <= moved
    assert all(parameter.grad is None for name, parameter in vit.named_parameters() if name in frozen)
    vit.freeze(4)
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    open_stem = ViT(TINY, torch_stream(0, "vit"))
    open_stem.freeze(1, stem=False)
    assert open_stem.patch_embed.proj.weight.requires_grad
    with pytest.raises(ValueError):
        vit.freeze(5)


def test_train_and_evaluation_mode_agree_without_a_stream():
    vit = ViT(TINY.model_copy(update={"drop_path": 0.9}), torch_stream(0, "vit"))
    assert torch.equal(vit.train()(images()), vit.eval()(images()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": 5}, {"heads": 3}, {"dim": 18}, {"norm": "mid"}, {"depth": 0}, {"image_size": (0, 12)},
        {"drop_path": 1.0}, {"width": 3},
    ],
)  # fmt: skip
def test_configs_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        ViTConfig.model_validate(TINY.model_dump() | wrong)
