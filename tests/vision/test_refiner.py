"""Both stages of the refiner (specs: mim-refiner §9, 3, 16 to 22, 25, 26)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.core.seeds import torch_stream
from firstlight.losses.neighbour import neighbour_alignment
from firstlight.vision.objective import Objective
from firstlight.vision.refiner import HeadStage, RefineStage
from firstlight.vision.refiner_config import (
    RefinerConfig,
    default_temperature,
    drawn_from,
    head_blocks,
    head_specs,
    head_weight,
    head_widths,
    queue_size,
)
from firstlight.vision.vit import ViT
from refining import config, encoder, head_stage, images, refine_stage


def rng() -> torch.Generator:
    return torch_stream(0, "draws")


def total(stage: HeadStage | RefineStage, seed: int = 0) -> torch.Tensor:
    return torch.stack(list(stage.loss(images(seed=seed), rng()).values())).sum()


def step(stage: HeadStage | RefineStage, seed: int = 0, updates: int = 1) -> None:
    """One update by plain gradient descent on what the stage names as trained."""
    total(stage, seed).backward()
    with torch.no_grad():
        for group in stage.parameter_groups():
            for parameter in group.parameters:
                parameter -= group.lr_scale * parameter.grad
    for parameter in stage.parameters():
        parameter.grad = None
    stage.after_step(seed, updates)


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_where_heads_sit():
    """Property 16."""
    assert head_blocks("auto", 24) == list(range(16, 23))
    assert head_blocks("auto", 32) == list(range(20, 31))
    assert head_blocks("auto", 12) == [8, 9, 10]
    assert head_blocks("auto", 8) == [5, 6]
    assert head_blocks("auto", 4) == [2]
    assert [head_blocks("auto", depth) for depth in (2, 1)] == [[0], []]
    assert head_blocks(1, 24) == []
    assert head_blocks(4, 24) == [20, 21, 22]
    assert head_blocks((15, 19), 24) == [15, 19]
    for wrong in ((23,), (4, 4), (-1,), 25):
        with pytest.raises(ValueError, match="heads need"):
            head_blocks(wrong, 24)
    assert [spec.name for spec in head_specs(RefinerConfig(), 1024, 24)][-2:] == ["block22", "main"]


def test_temperatures():
    assert [default_temperature(dim) for dim in (192, 1024, 1280, 2560)] == [0.2, 0.2, 0.3, 0.35]
    sweep = [
        spec.temperature
        for spec in head_specs(RefinerConfig(temperature="auto"), 1024, 24)
        if spec.block == 24
    ]
    assert sweep == [0.15, 0.175, 0.2, 0.225, 0.25]
    assert {spec.temperature for spec in head_specs(RefinerConfig(temperature=0.1), 1024, 24)} == {0.1}


def test_queue_size():
    assert queue_size(RefinerConfig(), 1_281_167, 1024) == 65536
    assert queue_size(RefinerConfig(), 9469, 256) == 3156
    with pytest.raises(ValueError, match="does not fit"):
        queue_size(RefinerConfig(), 300, 128)
    assert [drawn_from(RefinerConfig(), size) for size in (65536, 16384, 3156, 300)] == [20, 20, 6, 1]
    assert drawn_from(RefinerConfig(top_k=9), 300) == 9


def test_both_stages_are_objectives():
    assert isinstance(head_stage(), Objective)
    assert isinstance(refine_stage(), Objective)


def test_runs_of_the_encoder(monkeypatch):
    """Property 16: one run of the encoder for each crop size, however many heads."""
    calls = []
    original = ViT.forward_intermediates

    def counted(self, images, indices, rng=None):
        calls.append(tuple(images.shape))
        return original(self, images, indices, rng)

    monkeypatch.setattr(ViT, "forward_intermediates", counted)
    for heads in (1, 4):
        calls.clear()
        total(refine_stage(heads=heads))
        assert calls == [(12, 3, 16, 16), (18, 3, 8, 8)]


def test_features_are_raw_outputs_view_by_view():
    """Properties 17 and 18."""
    stage, batch = refine_stage(), images()
    features = stage.features(batch.views)
    alone = stage.encoder.forward_intermediates(batch.views[3][4:5], [2, 4])
    assert features.keys() == {2, 4}
    row = 3 * 6 + 4
    assert torch.allclose(features[2][row], alone[2][0, 0], atol=1e-5)
    assert torch.allclose(features[4][row], alone[4][0, 0], atol=1e-5)
    before = features[2].clone()
    with torch.no_grad():
        stage.encoder.norm.weight.fill_(3.0)
    again = stage.features(batch.views)
    assert torch.equal(again[2], before)
    assert not torch.allclose(again[4], features[4])


def test_frozen_encoder_in_the_head_stage():
    """Property 19."""
    stage = head_stage(encoder(drop_path=0.5))
    before = copy_of(stage.encoder)
    train = stage.features(images().views)
    for seed in range(3):
        step(stage, seed)
    assert not changed(before, stage.encoder)
    assert all(not f.requires_grad for f in train.values())
    assert all(torch.equal(f, train[block]) for block, f in stage.eval().features(images().views).items())
    assert {group.name for group in stage.parameter_groups()} == {"heads", "heads-no-decay"}


def test_first_view_alone_enters_the_queue():
    """Properties 3 and 21: the teachers are the projections of the global crops in the same pass."""
    stage, batch = refine_stage(heads=1), images()
    head = stage.heads[0]
    with torch.no_grad():
        projections = head.head(stage.features(batch.views)[4])[0].view(5, 6, -1)
    head.head.load_state_dict(
        refine_stage(heads=1).heads[0].head.state_dict()
    )  # running statistics of before
    total(stage)
    assert int(head.queue.pointer) == 6
    assert torch.allclose(head.queue.vectors[:6], projections[0], atol=1e-5)
    assert torch.equal(head.queue.rows[:6], batch.rows)


def test_loss_of_a_head_is_the_alignment_of_its_projections():
    stage, batch = refine_stage(heads=1, pair_mode="released", swap="all"), images()
    twin = refine_stage(heads=1)
    z, p = twin.heads[0].head(twin.features(batch.views)[4])
    teachers = z.view(5, 6, -1)[:2].detach()
    found = twin.heads[0].queue.lookup(teachers, batch.rows, 4, rng())
    expected = neighbour_alignment(
        p.view(5, 6, -1), teachers, found.vectors, 0.2, swap="all", mode="released"
    )
    assert float(total(stage).detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_local_crops_share_the_batch_statistics():
    """Property 20."""
    first, second = refine_stage(heads=1), refine_stage(heads=1)
    batch = images()
    first.loss(batch, rng())
    batch.views[4] = batch.views[4] + 1
    second.loss(batch, rng())
    means = [stage.heads[0].head.projector[1].running_mean for stage in (first, second)]
    assert not torch.allclose(*means)


def test_refinement_moves_encoder_and_heads():
    stage = refine_stage()
    before = copy_of(stage)
    step(stage)
    moved = changed(before, stage)
    trained = {name for name, parameter in stage.named_parameters() if not name.startswith("average.")}
    assert trained <= moved


def test_refinement_goes_on_from_heads_and_queues():
    """Property 6: vectors, rows, ages and pointer come along; top-k is a setting, not state."""
    heads = head_stage()
    step(heads)
    state = copy_of(heads.heads)
    stage = RefineStage(heads, 0.2)
    assert not changed(state, stage.heads)
    assert int(stage.heads[0].queue.pointer) == 6
    assert (heads.top_k(), stage.top_k()) == (1, 4)
    assert not any("top_k" in name for name in state)


def test_groups_of_parameters():
    """Property 22."""
    stage = refine_stage(encoder(registers=1), layer_decay=0.5, head_weight_decay=1e-5)
    groups = {group.name: group for group in stage.parameter_groups()}
    scales = {name: group.lr_scale for name, group in groups.items()}
    assert scales["stem"] == 0.5**5
    assert [scales[f"block{i}"] for i in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scales["norm-no-decay"] == scales["heads"] == 1
    names = {id(p): name for name, p in stage.named_parameters()}
    listed = [names[id(p)] for group in groups.values() for p in group.parameters]
    trained = [name for name in names.values() if not name.startswith("average.")]
    assert sorted(listed) == sorted(trained)
    for group in groups.values():
        for p in group.parameters:
            name = names[id(p)]
            bare = p.ndim == 1 or name.endswith(("bias", "cls_token", "reg_token"))
            wanted = 0.0 if bare else 1e-5 if name.startswith("heads") else None  # None: the run's
            assert group.weight_decay == wanted, name
    assert not any("pos_embed" in name for name in listed)


def test_average_of_the_weights():
    """Property 25."""
    stage = refine_stage(ema=0.75, freeze_blocks=1)
    assert not changed(copy_of(stage.encoder), stage.average)
    weight = stage.encoder.blocks[2].mlp.fc1.weight
    history = [weight.detach().clone()]
    with torch.no_grad():
        stage.encoder.pos_embed += 1
    for n in range(3):
        step(stage, n, 3)
        history.append(weight.detach().clone())
    expected = 0.75**3 * history[0] + 0.25 * sum(0.75 ** (3 - k) * history[k] for k in (1, 2, 3))
    assert torch.allclose(stage.average.blocks[2].mlp.fc1.weight, expected, atol=1e-6)
    assert torch.equal(stage.average.blocks[0].mlp.fc1.weight, stage.encoder.blocks[0].mlp.fc1.weight)
    assert torch.equal(stage.average.pos_embed, stage.encoder.pos_embed)  # buffers are copied, not averaged
    assert stage.refined() is stage.average
    plain = refine_stage(ema=None)
    assert plain.refined() is plain.encoder


def test_average_stays_out_of_the_forward_pass():
    stage, other = refine_stage(), refine_stage()
    with torch.no_grad():
        for parameter in other.average.parameters():
            parameter.zero_()
    assert torch.equal(total(stage), total(other))


def test_automatic_average_forgets_the_start():
    stage = refine_stage(ema="auto")
    first = stage.encoder.blocks[3].mlp.fc1.weight.detach().clone()
    with torch.no_grad():
        stage.encoder.blocks[3].mlp.fc1.weight += 1
    for n in range(100):
        stage.after_step(n, 100)
    left = first + 1 - stage.average.blocks[3].mlp.fc1.weight
    assert float(left.detach().abs().max()) == pytest.approx(0.9**100, rel=1e-2)


def test_frozen_blocks_stay():
    """Property 26."""
    stage = refine_stage(freeze_blocks=2)
    before = copy_of(stage.encoder)
    step(stage)
    moved = changed(before, stage.encoder)
    assert not any(name.startswith(("blocks.0.", "blocks.1.", "patch_embed", "cls_token")) for name in moved)
    assert any(name.startswith("blocks.2.") for name in moved)
    assert {group.name for group in stage.parameter_groups()}.isdisjoint({"stem", "block0", "block1"})


def test_recomputed_activations_change_nothing():
    grads = []
    for recompute in (False, True):
        stage = refine_stage(checkpoint_activations=recompute)
        total(stage).backward()
        grads.append({name: p.grad for name, p in stage.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_weights_of_heads_over_time():
    """Seven intermediate heads over 20 epochs: breaks at epochs 4, 6, … 16 (§2.6)."""
    at = [epoch / 20 for epoch in range(20)]
    step_ends = [sum(head_weight("staggered-step", i, 7, t) for t in at) for i in range(7)]
    assert step_ends == [4, 6, 8, 10, 12, 14, 16]
    one_hot = [[head_weight("one-hot", i, 7, t + 1e-9) for t in at] for i in range(7)]
    assert [row.count(1.0) for row in one_hot] == [4, 2, 2, 2, 2, 2, 2]
    assert all(
        max(column) == 1 and column.count(1.0) == 1 for column in list(zip(*one_hot, strict=True))[:16]
    )
    assert all(row.index(1.0) == row.count(0.1) for row in one_hot)
    assert head_weight("uniform-decay", 6, 7, 0.19) == 1
    assert head_weight("uniform-decay", 6, 7, 0.6) == pytest.approx(0.5)
    assert head_weight("staggered-decay", 6, 7, 0.9) == pytest.approx(0.5)
    assert head_weight("staggered-decay", 0, 1, 1.0) == pytest.approx(0)


def test_schedule_reaches_the_loss():
    stage = refine_stage(heads=3, head_weights="staggered-step")
    constant = refine_stage(heads=3)
    for n in range(5):
        stage.after_step(n, 10)
        constant.after_step(n, 10)
    assert stage.weights() == [0, 1, 1]
    scheduled, plain = stage.loss(images(), rng()), constant.loss(images(), rng())
    assert float(scheduled["block1"].detach()) == 0
    assert torch.equal(scheduled["main"], plain["main"])


def test_sweep_chooses_by_agreement():
    stage = head_stage(temperature="auto", heads=2)
    for seed in range(3):
        step(stage, seed)
    for index, agreement in enumerate((0.9, 0.1, 0.2, 0.3, 0.4, 0.2)):  # block2 first: not part of the sweep
        stage.heads[index].figures[2] = agreement
    assert stage.chosen_temperature() == 0.225
    refined = RefineStage(stage, stage.chosen_temperature())
    assert [tuple(spec) for spec in refined.specs] == [("block2", 2, 0.225), ("main", 4, 0.225)]
    assert refined.heads[1] is stage.heads[4]


def test_running_figures():
    stage = refine_stage(heads=1)
    seen = []
    for seed in range(3):
        head = stage.heads[0]
        batch = images(seed=seed)
        with torch.no_grad():
            z = head.head(stage.features(batch.views)[4])[0].view(5, 6, -1)[:2]
        seen.append(head.queue.lookup(z, batch.rows, 4, rng()))
        with torch.no_grad():
            total(stage, seed)
        stage.after_step(seed, 3)
    figures = stage.figures()
    agreement = sum(float((f.best[0] == f.best[1]).float().mean()) for f in seen) / 3
    assert figures["main.agreement"] == pytest.approx(agreement, abs=1e-6)
    assert figures["main.age"] == pytest.approx(sum(float(f.ages.float().mean()) for f in seen) / 3, rel=1e-5)
    assert -1 <= figures["main.similarity"] <= 1


def test_widths():
    assert [head_widths(RefinerConfig(), dim).output for dim in (1024, 768, 384, 192)] == [256, 256, 128, 128]
    assert head_widths(RefinerConfig(widths="debug"), 1024).output == 4


def test_refusals():
    with pytest.raises(ValueError, match="extra"):
        config(depth=3)


def test_memory_estimate_follows_the_knobs():
    from firstlight.vision.refiner_memory import memory_estimate
    from firstlight.vision.vit import ViTConfig

    large = ViTConfig(image_size=(224, 224), patch_size=16, dim=1024, depth=24, heads=16)
    sizes = [(224, 224)] * 2 + [(96, 96)] * 10

    def estimate(batch: int = 64, half: bool = True, **changes: object) -> dict[str, int]:
        settings = RefinerConfig.model_validate(changes)
        specs = head_specs(settings, 1024, 24)
        return memory_estimate(large, settings, specs, sizes, batch=batch, queue=65536, half=half)

    plain = estimate()
    # 303 M parameters: weights, gradients, two moments and the average in single precision; weights in half.
    assert plain["encoder"] == pytest.approx(303e6 * (4 * 5 + 2), rel=0.01)
    # A step of that on a GPU took 53.2 GB (results/speed/encoder-large-cuda-bfloat16.json).
    assert sum(plain.values()) == pytest.approx(53.2e9, rel=0.03)
    # A user's report (issue 11 of the authors' repository): a batch of 64 is what fits into 80 GB.
    assert 40e9 < sum(plain.values()) < 80e9
    single = estimate(half=False)["activations"]
    assert estimate(half=False, checkpoint_activations=True)["activations"] < single / 4
    # What is passed from block to block stays in single precision, so that half of it saves less.
    assert estimate(checkpoint_activations=True)["activations"] < plain["activations"] / 3.8
    assert estimate(freeze_blocks=12)["activations"] == plain["activations"] // 2
    assert estimate(heads=4)["heads"] == plain["heads"] // 2
    assert estimate(batch=128)["activations"] == 2 * plain["activations"]


@pytest.mark.parametrize("half", [False, True])
def test_estimated_activations_are_what_the_backward_pass_keeps(half):
    """Counted: every storage that autograd saves in one pass, weights apart."""
    from firstlight.vision.refiner_memory import memory_estimate
    from firstlight.vision.vit import ViT, ViTConfig

    shape = ViTConfig(image_size=(64, 64), patch_size=8, dim=64, depth=8, heads=2)
    vit = ViT(shape, torch_stream(0, "encoder"))
    own = {parameter.untyped_storage().data_ptr() for parameter in vit.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        vit(torch.randn(128, 3, 64, 64, generator=torch_stream(0, "images")))
    counted = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    specs = head_specs(RefinerConfig(), 64, 8)
    plain = RefinerConfig(freeze_blocks=0)
    estimate = memory_estimate(shape, plain, specs, [(64, 64)], batch=128, queue=16, half=half, on_gpu=False)
    assert estimate["activations"] == pytest.approx(counted, rel=0.06)
