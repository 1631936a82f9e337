"""Where a setting called ``device`` puts things."""

from __future__ import annotations

import pytest
import torch

from firstlight.core.devices import chosen_device, multiplies_bfloat16
from firstlight.core.errors import InputError


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there, auto):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device("auto").type == auto
    assert chosen_device("cpu").type == "cpu"


def test_what_the_processor_multiplies(monkeypatch):
    for told, expected in (
        ({"avx512_bf16": True, "avx2": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"sve_bf16": True, "num_sockets": 1}, True),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert multiplies_bfloat16() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert multiplies_bfloat16() is False


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU"):
        chosen_device("cuda")
