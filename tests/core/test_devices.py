"""Where a setting called ``device`` puts things."""

from __future__ import annotations

import pytest
import torch

from firstlight.core.devices import chosen_device
from firstlight.core.errors import InputError


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there, auto):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device("auto").type == auto
    assert chosen_device("cpu").type == "cpu"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU"):
        chosen_device("cuda")
