"""Masked autoencoders: the loss against a plain double loop, and what the encoder may not see."""

import math

import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.vision.mae import MAE, MAEConfig, normalised, patchify
from firstlight.vision.objective import ImageBatch, Objective
from firstlight.vision.vit import ViT
from firstlight.vision.vit_config import ViTConfig

SHAPE = ViTConfig(image_size=(16, 12), patch_size=4, dim=32, depth=2, heads=2)


def make(shape=SHAPE, **settings):
    config = MAEConfig(**{"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, **settings})
    return MAE(config, ViT(shape, torch_stream(0, "encoder")), torch_stream(0, "decoder"))


def images(n=3, seed=0):
    return torch.randn(n, 3, 16, 12, generator=torch_stream(seed, "images"))


def batch(n=3):
    return ImageBatch([images(n)], torch.arange(n))


def test_it_is_an_objective():
    assert isinstance(make(), Objective)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_loss_against_a_double_loop(norm_pix_loss, class_token):
    shape = SHAPE.model_copy(update={"class_token": class_token})
    mae = make(shape, norm_pix_loss=norm_pix_loss).double()
    data = ImageBatch([images().double()], torch.arange(3))
    found = mae.loss(data, torch_stream(1, "step"))["reconstruction"]
    predicted, hidden = mae.reconstruct(data.views[0], mae.shuffle(data.views[0], torch_stream(1, "step")))
    assert hidden.shape == (3, 9)  # of 12 patches
    terms = []
    for image, guesses, patches in zip(
        data.views[0].tolist(), predicted.tolist(), hidden.tolist(), strict=True
    ):
        for guess, patch in zip(guesses, patches, strict=True):
            row, column = divmod(patch, 3)
            values = [
                image[channel][4 * row + y][4 * column + x]
                for y in range(4) for x in range(4) for channel in range(3)
            ]  # fmt: skip
            if norm_pix_loss:
                mean = sum(values) / 48
                spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 47 + 1e-6)
                values = [(v - mean) / spread for v in values]
            terms += [(g - v) ** 2 for g, v in zip(guess, values, strict=True)]
    assert len(terms) == 3 * 9 * 48
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_hidden_patches_are_not_seen():
    mae = make()
    before = images()
    order = mae.shuffle(before, torch_stream(1, "step"))
    visible, first_hidden = order[0, 0].item(), order[0, 3].item()
    assert mae.visible(12) == 3

    def changed(patch):
        after = before.clone()
        row, column = divmod(patch, 3)
        after[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        return mae.reconstruct(after, order)[0]

    whole = mae.reconstruct(before, order)[0]
    assert torch.equal(changed(first_hidden), whole)
    assert not torch.allclose(changed(visible)[0], whole[0])
    assert torch.equal(changed(visible)[1:], whole[1:])


def test_every_patch_is_in_its_place():
    """The order of the shuffle must not matter but for which patches it hides."""
    mae = make()
    data = images(1)
    order = mae.shuffle(data, torch_stream(2, "step"))
    other = torch.cat([order[:, [2, 0, 1]], order[:, 3:].flip(1)], dim=1)
    predicted, hidden = mae.reconstruct(data, order)
    turned, places = mae.reconstruct(data, other)
    assert torch.equal(places, hidden.flip(1))
    assert torch.allclose(turned.flip(1), predicted, atol=1e-5)


def test_masks_differ_between_images_and_steps():
    mae, data = make(), images(64)
    first, again, other = (mae.shuffle(data, torch_stream(0, "step", step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    hidden = torch.zeros(12)
    for step in range(50):
        hidden += torch.bincount(
            mae.shuffle(data, torch_stream(0, "step", step))[:, 3:].flatten(), minlength=12
        )
    assert (hidden / (50 * 64) - 0.75).abs().max() < 0.04


def test_patches_and_their_norm():
    image = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    patches = patchify(image, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]
    normed = normalised(patches)
    assert torch.allclose(normed.mean(2), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(normed.std(2), torch.ones(2, 4), atol=1e-5)
    assert torch.isfinite(normalised(torch.ones(1, 1, 12))).all()


def test_everything_learns_and_biases_do_not_decay():
    mae = make()
    mae.loss(batch(), torch_stream(0, "step"))["reconstruction"].backward()
    groups = {group.name: group for group in mae.parameter_groups()}
    held = [id(parameter) for group in groups.values() for parameter in group.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in mae.parameters())
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in mae.parameters()
    )
    free = {id(parameter) for parameter in groups["mae-no-decay"].parameters}
    assert groups["mae-no-decay"].weight_decay == 0
    for name, parameter in mae.named_parameters():
        assert (id(parameter) in free) == (parameter.ndim < 2 or name.endswith("token"))


def test_it_learns_to_paint():
    """Images of one colour each: the hidden patches follow from the visible ones."""
    mae = make(norm_pix_loss=False)
    optimiser = torch.optim.AdamW(mae.parameters(), 3e-3)
    losses = []
    for step in range(120):
        rng = torch_stream(0, "step", step)
        data = torch.randn(16, 3, 1, 1, generator=rng).expand(-1, -1, 16, 12)
        loss = mae.loss(ImageBatch([data], torch.arange(16)), rng)["reconstruction"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_building_reads_no_global_generator():
    before = torch.random.get_rng_state()
    first, second = make(), make()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"decoder_dim": 18}, {"decoder_dim": 16, "decoder_heads": 3}])
def test_decoders_that_cannot_be(settings):
    with pytest.raises(ValueError, match="must divide decoder_dim"):
        MAEConfig(**settings)
