"""What tells runs apart: all of a config but what came later and stands at its default."""

import json
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from firstlight.core.hashing import hash_strings
from firstlight.core.identity import ADDED_LATER, decisive
from firstlight.training.config import RunConfig
from firstlight.training.encoder_config import EncoderTrainingConfig, PretrainConfig
from firstlight.training.refine_config import RefineConfig
from firstlight.views.config import ViewsConfig
from firstlight.vision.vit_config import ViTConfig


class _InnerBefore(BaseModel):
    rate: float = 0.1


class _Before(BaseModel):
    inner: _InnerBefore = _InnerBefore()
    names: tuple[str, ...] = ("a",)


class _Inner(_InnerBefore):
    shape: Annotated[str | None, ADDED_LATER] = None


class _Now(BaseModel):
    inner: _Inner = _Inner()
    names: tuple[str, ...] = ("a",)
    warm: Annotated[int, Field(ge=0), ADDED_LATER] = 3


def test_a_field_that_came_later_counts_only_where_it_is_set():
    assert decisive(_Now()) == decisive(_Before()) == {"inner": {"rate": 0.1}, "names": ["a"]}
    assert decisive(_Now(warm=0)) == {**decisive(_Before()), "warm": 0}
    assert decisive(_Now(inner=_Inner(shape="wide")))["inner"] == {"rate": 0.1, "shape": "wide"}
    assert decisive(_Now(inner=_Inner(rate=0.2))) == decisive(_Before(inner=_InnerBefore(rate=0.2)))
    with pytest.raises(ValueError, match="warm"):
        _Now(warm=-1)  # limits hold beside the mark


def test_fields_of_the_configs_that_came_later():
    assert "colours" not in decisive(RefineConfig())["crops"]
    assert decisive(RefineConfig.model_validate({"crops": {"colours": False}}))["crops"]["colours"] is False
    assert "precision" not in decisive(ViewsConfig())["encoder"]
    assert "precision" in decisive(EncoderTrainingConfig())  # this one was always there


SHAPE = ViTConfig(image_size=(64, 64), patch_size=8, dim=192, depth=12, heads=3)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (RefineConfig(), "dd8b5f2e6e70642f"),
        (PretrainConfig(encoder=SHAPE), "4e9c55c93e1b077c"),
        (RunConfig.model_validate({"model": {"name": "mhcr"}}), "0c5cc8f5061daab4"),
        (RunConfig.model_validate({"model": {"name": "tower"}}), "d8a32c0fd55ca927"),
        (RunConfig.model_validate({"model": {"name": "lightgcn"}}), "4861498681d6d56f"),
    ],
)
def test_runs_of_earlier_versions_are_known_again(config, known):
    found = hash_strings([json.dumps(decisive(config), sort_keys=True)])[:16]
    assert found == known, (
        "runs of earlier versions can no longer be continued. A new field: mark it ADDED_LATER, if its default is what "
        "was done without it. Otherwise (a default changed) say so in the changelog and put the new hash here"
    )
