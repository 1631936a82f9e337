"""Where tensors are computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from firstlight.core.errors import InputError

#: Names under which PyTorch reports instructions for products in bfloat16 (x86: AVX512, AMX; ARM).
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def multiplies_bfloat16() -> bool:
    """Whether this machine's processor has instructions for products in bfloat16; False where PyTorch cannot tell."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in _BFLOAT16)


def chosen_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a setting means on this machine; ``auto``: a GPU if there is one.

    Raises:
        InputError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InputError("the device is to be 'cuda', and PyTorch sees no GPU", hint="use 'auto' or 'cpu'")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")
