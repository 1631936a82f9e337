"""AdamW over named groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from firstlight.vision.objective import ParameterGroup


class GroupAdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) whose state has names, for a safetensors file.

    Args:
        groups: What is trained; a parameter belongs to one group only.
        betas: Decays of the moments.
        weight_decay: Of groups that do not name their own.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.groups = list(groups)
        parameters = [parameter for group in self.groups for parameter in group.parameters]
        if len({id(parameter) for parameter in parameters}) != len(parameters):
            raise ValueError("a parameter stands in two groups")
        self._adam = torch.optim.AdamW(
            [
                {
                    "params": group.parameters,
                    "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
                }
                for group in self.groups
            ],
            lr=0.0,
            betas=betas,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """Apply the gradients at ``rate`` times each group's scale; parameters without one are left alone."""
        for group, settings in zip(self.groups, self._adam.param_groups, strict=True):
            settings["lr"] = rate * group.lr_scale
        self._adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts by group, place in it and kind."""
        found = {}
        for group in self.groups:
            for place, parameter in enumerate(group.parameters):
                for kind, value in self._adam.state.get(parameter, {}).items():
                    found[f"{group.name}.{place}.{kind}"] = value
        return found

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._adam.state.clear()
        for group in self.groups:
            for place, parameter in enumerate(group.parameters):
                prefix = f"{group.name}.{place}."
                kinds = {
                    name.removeprefix(prefix): value.to(parameter.device, copy=True)
                    for name, value in state.items()
                    if name.startswith(prefix)
                }
                if kinds:
                    self._adam.state[parameter] = kinds
