"""What every objective of pre-training must do."""

from __future__ import annotations

import pytest
import torch

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.training.encoder_config import PretrainConfig
from firstlight.training.pretrain import build_objective, crops_of
from firstlight.vision import OBJECTIVES
from firstlight.vision.objective import ImageBatch, Objective
from firstlight.vision.vit import ViT, ViTConfig

SHAPE = {"image_size": [16, 16], "patch_size": 4, "dim": 24, "depth": 2, "heads": 2}


@pytest.fixture(params=OBJECTIVES.names())
def config(request) -> PretrainConfig:
    kind = OBJECTIVES.load(request.param)
    encoder = {**SHAPE, "class_token": kind.class_token}
    return PretrainConfig.model_validate({"objective": request.param, "encoder": encoder})


@pytest.fixture
def batch() -> ImageBatch:
    return ImageBatch([torch.randn(6, 3, 16, 16, generator=torch_stream(0, "images"))], torch.arange(6))


def test_it_is_named_as_it_is_registered_and_has_settings(config):
    kind = OBJECTIVES.load(config.objective)
    assert kind.name == config.objective
    assert type(kind.settings(config)) is kind.Config
    assert crops_of(config).views[0].size == (16, 16)


def test_the_same_step_has_the_same_loss_and_teaches_the_encoder(config, batch):
    objective = build_objective(config)
    assert isinstance(objective, Objective)
    first, again = (objective.loss(batch, torch_stream(0, "step", 3)) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    sum(first.values()).backward()
    trained = [parameter for parameter in objective.encoder.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert any(parameter.grad.abs().sum() > 0 for parameter in trained)
    named = {id(parameter) for group in objective.parameter_groups() for parameter in group.parameters}
    assert {id(parameter) for parameter in trained} <= named
    objective.after_step(0, 10)
    assert all(isinstance(value, float) for value in objective.figures().values())


def test_equal_seeds_start_equal(config):
    first, second = build_objective(config), build_objective(config)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


def test_it_goes_on_from_an_encoder_and_leaves_one(config):
    objective = build_objective(config)
    other = ViT(
        ViTConfig.model_validate({**SHAPE, "class_token": config.encoder.class_token}), torch_stream(9, "x")
    )
    objective.start_from(other.state_dict())
    learned = objective.learned()
    assert isinstance(learned, ViT)
    assert all(torch.equal(learned.state_dict()[name], value) for name, value in other.state_dict().items())


def test_an_unknown_objective_names_those_that_are_known():
    with pytest.raises(ValueError, match="known: mae, i-jepa"):
        PretrainConfig.model_validate({"objective": "jigsaw", "encoder": SHAPE})
    with pytest.raises(InputError, match="jigsaw"):
        OBJECTIVES.load("jigsaw")
