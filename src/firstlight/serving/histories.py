"""Users whom training never saw, made of the items that they clicked.

By the model's own rule where the base has one (:mod:`firstlight.models.histories`), with the numbers of the run's
``encode_users``; else the history is *folded in*: the mean of the items' vectors, mapped to where training put the
users of such histories.

A base keeps the rule in two files::

    histories.json          format version, kind of the rule, its settings
    histories.safetensors   its tensors; what items hand on is an extra (:mod:`firstlight.serving.extras`)
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.files import write_json
from firstlight.data.interactions import Interactions
from firstlight.models.histories import RULES, FoldRule, HistoryRule, fit_fold

if TYPE_CHECKING:
    from firstlight.serving.base import Base
    from firstlight.serving.snapshot import Snapshot

SETTINGS, TENSORS = "histories.json", "histories.safetensors"
FORMAT_VERSION = 1


def write_rule(folder: Path, rule: HistoryRule) -> None:
    """Write a rule into the folder of a base."""
    settings, tensors = rule.state()
    write_json(folder / SETTINGS, {"format_version": FORMAT_VERSION, "kind": rule.kind, "settings": settings})
    if tensors:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / TENSORS)


def rule_of(about: dict[str, Any], tensors: dict[str, Tensor]) -> HistoryRule:
    """A rule, from the content of its two files.

    Raises:
        InputError: It is of another format version, or of a kind that is not known.
    """
    if about.get("format_version") != FORMAT_VERSION or about.get("kind") not in RULES.names():
        raise InputError(
            f"the rule for histories is of a kind that is not known ({about.get('kind')!r})",
            hint="install a newer firstlight",
        )
    rule: HistoryRule = RULES.load(about["kind"]).from_state(about["settings"], tensors)
    return rule


class NewUsers:
    """Makes users of histories, for one base.

    Args:
        base: The base.
    """

    def __init__(self, base: Base) -> None:
        self._base = base

    @property
    def by_model(self) -> bool:
        """Whether the base has the rule of its model."""
        return self._base.rule is not None

    def vector(self, snapshot: Snapshot, rows: npt.NDArray[np.int64]) -> Tensor:
        """``(dim,)`` vector of somebody who clicked the items of ``rows`` ``(n,)``, at least one.

        Items that came after training count like the others. Where the model's rule reads more of an item than is
        known of it (an item that was added by its vector alone), the history is folded in.
        """
        rule = self._base.rule
        if rule is not None:
            handed = (
                snapshot.vectors()[torch.from_numpy(rows)]
                if rule.reads == "vectors"
                else torch.from_numpy(snapshot.extra("handed", rows))
            )
            if bool(handed.isfinite().all()):
                return rule.users(_alone(len(rows)), handed)[0]
        return self._fold.users(_alone(len(rows)), snapshot.vectors()[torch.from_numpy(rows)])[0]

    @cached_property
    def _fold(self) -> FoldRule:
        users, log = self._base.user_vectors, self._base.seen
        # Whether the last coordinate of every user is one: what the offset of cold items is multiplied by.
        constant = users.shape[1] > 1 and len(users) > 0 and bool((users[:, -1] == 1).all())
        width = self._base.dim - constant
        users = users[:, :width]
        lengths = users[torch.from_numpy(log.user_degrees > 0)].norm(dim=1)
        unit = bool(len(lengths)) and torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4)
        return FoldRule(fit_fold(self._base.item_vectors[:, :width], users, log), unit, constant)


def _alone(n: int) -> Interactions:
    """A log of one user who clicked all of ``n`` items."""
    return Interactions(np.array([0, n], np.int64), np.arange(n, dtype=np.int32), n)
