"""What tells runs apart: all of a config but what came later and stands at its default."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from firstlight.core.identity import ADDED_LATER, decisive
from firstlight.training.encoder_config import EncoderTrainingConfig
from firstlight.training.refine_config import RefineConfig
from firstlight.views.config import ViewsConfig


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
