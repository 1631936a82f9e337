"""I-JEPA: masks, the loss against a plain loop, what the predictor may see, the slow copy."""

import pytest
import torch
from torch.nn.functional import layer_norm

from firstlight.core.seeds import torch_stream
from firstlight.vision import ijepa as module
from firstlight.vision.ijepa import IJEPA, IJEPAConfig, block_shape, place_blocks
from firstlight.vision.objective import ImageBatch, Objective
from firstlight.vision.vit import ViT
from firstlight.vision.vit_config import ViTConfig

SHAPE = ViTConfig(image_size=(32, 24), patch_size=4, dim=32, depth=2, heads=2, class_token=False)
GRID = (8, 6)


def make(shape=SHAPE, **settings):
    config = IJEPAConfig(**{"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, **settings})
    return IJEPA(config, ViT(shape, torch_stream(0, "encoder")), torch_stream(0, "predictor"))


def images(n=4, seed=0):
    return torch.randn(n, 3, 32, 24, generator=torch_stream(seed, "images"))


def test_it_is_an_objective():
    assert isinstance(make(), Objective)


def test_blocks_are_rectangles_of_the_asked_area():
    rng = torch_stream(0, "blocks")
    for _ in range(50):
        height, width = block_shape((16, 16), (0.15, 0.2), (0.75, 1.5), rng)
        assert 0.11 < height * width / 256 < 0.26
        assert 0.6 < height / width < 1.9
        patches = place_blocks(3, (16, 16), (height, width), rng)
        for block in patches:
            rows, columns = block // 16, block % 16
            assert len(block.unique()) == height * width
            assert (rows.max() - rows.min(), columns.max() - columns.min()) == (height - 1, width - 1)
            assert block.max() < 256
    assert block_shape((2, 9), (1.0, 1.0), (1.0, 1.0), rng) == (2, 4)


def test_places_are_uniform():
    found = place_blocks(20_000, (4, 5), (3, 2), torch_stream(0, "places"))[:, 0]
    share = torch.bincount(found, minlength=20)[[0, 1, 2, 3, 5, 6, 7, 8]] / 20_000
    assert (share - 1 / 8).abs().max() < 0.01


def test_targets_are_not_seen():
    jepa = make(min_context=2)
    for step in range(20):
        context, targets = jepa.masks(16, GRID, torch_stream(0, "step", step))
        assert context.shape[0] == targets.shape[0] == 16
        assert targets.shape[1] == 4
        for seen, predicted in zip(context.tolist(), targets.flatten(1).tolist(), strict=True):
            assert len(set(seen)) == len(seen)
            assert not set(seen) & set(predicted)
    crowded, _ = make(min_context=40).masks(16, GRID, torch_stream(0, "step"))
    assert crowded.shape == (16, 40)  # now a target may be seen, rather than nearly nothing


def test_ranks_draw_their_part(monkeypatch):
    jepa = make()
    context, targets = jepa.masks(6, GRID, torch_stream(0, "step"))
    monkeypatch.setattr(module, "world", lambda: 2)
    for rank in (0, 1):
        own = slice(3 * rank, 3 * rank + 3)
        monkeypatch.setattr(module, "own_slice", lambda n, own=own: own)
        part = jepa.masks(3, GRID, torch_stream(0, "step"))
        assert torch.equal(part[0], context[own])
        assert torch.equal(part[1], targets[own])


@pytest.mark.parametrize("class_token", [False, True])
def test_loss_against_a_loop(class_token):
    jepa = make(SHAPE.model_copy(update={"class_token": class_token})).double()
    data = images().double()
    with torch.no_grad():
        for parameter in jepa.target.parameters():
            parameter.mul_(1.1)  # the copy is another network by now
        found = jepa.loss(ImageBatch([data], torch.arange(4)), torch_stream(1, "step"))["prediction"]
        context, targets = jepa.masks(4, GRID, torch_stream(1, "step"))
        predicted = jepa.predict(data, context, targets)
        prefix = int(class_token)
        terms = []
        for image in range(4):
            outputs = jepa.target(data[image : image + 1])[0, prefix:].float()
            for block in range(4):
                for slot, patch in enumerate(targets[image, block].tolist()):
                    wanted = layer_norm(outputs[patch], (32,)).tolist()
                    for a, b in zip(predicted[image, block, slot].float().tolist(), wanted, strict=True):
                        gap = abs(a - b)
                        terms.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_each_block_is_predicted_by_itself_from_the_context_alone():
    jepa, data = make(), images(2)
    context, targets = jepa.masks(2, GRID, torch_stream(0, "step"))
    whole = jepa.predict(data, context, targets)
    assert torch.allclose(jepa.predict(data, context, targets[:, 1:2]), whole[:, 1:2], atol=1e-6)
    hidden = next(patch for patch in range(48) if patch not in context[0].tolist())
    row, column = divmod(hidden, 6)
    changed = data.clone()
    changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 3
    assert torch.equal(jepa.predict(changed, context, targets), whole)
    row, column = divmod(context[0, 0].item(), 6)
    changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 3
    assert not torch.allclose(jepa.predict(changed, context, targets)[0], whole[0])


def test_the_slow_copy_gets_no_gradient_and_follows():
    jepa = make(momentum=0.9)
    before = [parameter.clone() for parameter in jepa.target.parameters()]
    jepa.loss(ImageBatch([images()], torch.arange(4)), torch_stream(0, "step"))["prediction"].backward()
    assert all(parameter.grad is None for parameter in jepa.target.parameters())
    trained = [p for name, p in jepa.named_parameters() if not name.startswith("target.")]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    held = [parameter for group in jepa.parameter_groups() for parameter in group.parameters]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in trained}
    with torch.no_grad():
        for parameter in jepa.encoder.parameters():
            parameter.add_(1.0)
    jepa.after_step(0, 10)
    moved = [p.detach() - b for p, b in zip(jepa.target.parameters(), before, strict=True)]
    assert all(torch.allclose(step, torch.full_like(step, 0.1), atol=1e-6) for step in moved)
    jepa.after_step(5, 10)  # halfway, .95 stay
    moved = [p.detach() - b for p, b in zip(jepa.target.parameters(), before, strict=True)]
    assert all(torch.allclose(step, torch.full_like(step, 0.1 + 0.05 * 0.9), atol=1e-6) for step in moved)
    assert jepa.learned() is jepa.target


def test_it_learns_and_does_not_collapse():
    jepa = make(momentum=0.95)
    optimiser = torch.optim.AdamW([p for p in jepa.parameters() if p.requires_grad], 2e-3)
    losses = []
    for step in range(60):
        rng = torch_stream(0, "step", step)
        # two colours a picture, left and right: what a patch is follows from its neighbours
        data = torch.randn(8, 3, 1, 2, generator=rng).repeat_interleave(12, 3).expand(-1, -1, 32, -1)
        loss = jepa.loss(ImageBatch([data.contiguous()], torch.arange(8)), rng)["prediction"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        jepa.after_step(step, 60)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert jepa.figures()["target_std"] > 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"predictor_dim": 18},
        {"target_scale": (0.3, 0.2)},
        {"context_scale": (0.5, 1.5)},
        {"target_ratio": (0, 1)},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=r"predictor_dim|must be"):
        IJEPAConfig(**settings)
