"""Where tensors are computed with."""

from __future__ import annotations

from typing import Literal

import torch

from firstlight.core.errors import InputError


def chosen_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a setting means on this machine; ``auto``: a GPU if there is one.

    Raises:
        InputError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InputError("the device is to be 'cuda', and PyTorch sees no GPU", hint="use 'auto' or 'cpu'")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")
