"""Why an item is in a list: the view in which it is most like what was clicked, and the hyperedge it belongs to.

*Views.* The cosine of two items differs from view to view in what it means: two covers are alike sooner than two
titles. So a likeness is counted in standard deviations above that of two items at random, and the strongest view is the
one in which the recommended item and the item of the history that explains it are most alike; none, if they are no
more alike than any two.

What is compared are unit rows of the views, a byte a column, and projected where a view is very wide. On MovieLens
(small) the strongest view was the same as with whole rows for 99.8 % of pairs, and for all whose best two views lie a
deviation apart; had the 304 columns of its covers been projected to 256, for 96.6 %, and for all of those, too.

*Hyperedges* are MHCR's, where they count in the score: soft groups of items that training found, one set a view. An
item's is the one with the highest weight in its strongest view, told by the clicked items that weigh most in it; not
told is one that has little more of the item than the others have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.core.seeds import numpy_stream
from firstlight.models.content import ContentModel, ContentRows
from firstlight.serving.extras import Array

FORMAT_VERSION = 1
#: Columns of a view that are kept as they are; wider ones are projected.
WIDTH = 512
#: Items that are kept to tell a hyperedge by, and pairs that a view's usual likeness is taken from.
MEMBERS, PAIRS = 8, 4096

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ViewLevel:
    """A view, and how alike two of its items are at random.

    Attributes:
        name: Of the view.
        width: Columns that are kept of it.
        mean: Of the cosine.
        deviation: Of the cosine; never zero.
        members: Per hyperedge, raw ids of the clicked items with the highest weight, highest first.
    """

    name: str
    width: int
    mean: float
    deviation: float
    members: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Reasons:
    """What a catalogue keeps to explain its lists.

    Attributes:
        views: In the order of the columns of the extra ``views``.
    """

    views: tuple[ViewLevel, ...]

    @property
    def hyperedges(self) -> bool:
        """Whether there are any."""
        return any(view.members for view in self.views)

    def strongest(self, items: Array, past: Array) -> list[int | None]:
        """Per pair, the place of the view in which both are most alike; None: no more alike than two at random.

        Args:
            items: ``(k, Σ width)`` rows of the extra ``views``.
            past: The same of what they are compared with.
        """
        levels, lo = [], 0
        for view in self.views:
            rows, others = (_unit(part[:, lo : lo + view.width]) for part in (items, past))
            lo += view.width
            both = rows.any(axis=1) & others.any(axis=1)
            cosines = np.einsum("kd,kd->k", rows, others)
            levels.append(np.where(both, (cosines - view.mean) / view.deviation, -np.inf))
        if not levels:
            return [None] * len(items)
        table = np.stack(levels, axis=1)
        return [int(row.argmax()) if row.max() > 0 else None for row in table]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "format_version": FORMAT_VERSION,
            "views": [{**vars(view), "members": [list(ids) for ids in view.members]} for view in self.views],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Reasons:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: It is of another format version.
        """
        if value.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"format version {value.get('format_version')!r} of the reasons is not known",
                hint="install a newer firstlight",
            )
        entries = ({**entry, "members": tuple(map(tuple, entry["members"]))} for entry in value["views"])
        return cls(tuple(ViewLevel(**entry) for entry in entries))


def rows_of(model: ContentModel, content: ContentRows) -> dict[str, Array]:
    """The extras that explain items: ``views``, and ``edges`` with ``edge-weights`` where there are hyperedges.

    Args:
        model: The model.
        content: Of ``n`` items, in the catalogue or not.
    """
    found: dict[str, Array] = {
        "views": np.concatenate([reduced(values) for values in content.values], axis=1)
    }
    members = model.hyperedges(content)
    if members is not None:
        weights, edges = members.max(dim=2)
        there = content.present.numpy()
        found["edges"] = np.where(there, edges.numpy(), -1).astype(np.int16)
        found["edge-weights"] = weights.numpy().astype(np.float16)
    return found


def fit_reasons(model: ContentModel, ids: npt.NDArray[np.object_], rows: Array) -> Reasons:
    """What explains the lists of a model.

    Args:
        model: The model, with the content that it was trained on.
        ids: ``(n_items,)`` raw ids of that catalogue.
        rows: Its extra ``views``.
    """
    content, warm = model.content, (~model.cold).numpy()
    members = model.hyperedges(content)
    views, lo = [], 0
    for place, (name, dim) in enumerate(model.view_dims.items()):
        width = min(dim, WIDTH)
        mean, deviation = _level(rows[:, lo : lo + width], content.present[:, place].numpy())
        told: tuple[tuple[str, ...], ...] = ()
        if members is not None:
            told = _told(members[:, place], ids, warm & content.present[:, place].numpy())
        views.append(ViewLevel(name, width, mean, deviation, told))
        lo += width
    return Reasons(tuple(views))


def reduced(values: Tensor) -> npt.NDArray[np.int8]:
    """``(n, min(dim, WIDTH))`` rows whose cosines are about those of ``values`` ``(n, dim)``; zero rows stay zero."""
    unit = F.normalize(values.detach().to(torch.float32), dim=1)
    if unit.shape[1] > WIDTH:
        unit = unit @ torch.from_numpy(_signs(unit.shape[1]))
    largest = unit.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    return (unit / largest * 127).round().to(torch.int8).numpy()


@lru_cache(maxsize=8)
def _signs(dim: int) -> FloatArray:
    """``(dim, WIDTH)`` of plus and minus one: a projection that keeps cosines, and that is the same everywhere.

    It is drawn from raw bits, whose stream no version of numpy may change.
    """
    words = np.random.PCG64(0).random_raw(dim * WIDTH // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8)).reshape(dim, WIDTH)
    return bits.astype(np.float32) * 2 - 1


def _unit(rows: Array) -> FloatArray:
    values = rows.astype(np.float32)
    lengths = np.sqrt(np.einsum("kd,kd->k", values, values))
    unit: FloatArray = values / np.maximum(lengths, 1e-12)[:, None]
    return unit


def _level(rows: Array, present: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and deviation of the cosine of two different items that have the view."""
    there = np.flatnonzero(present)
    if len(there) < 2:
        return 0.0, 1.0
    rng = numpy_stream(0, "likeness")
    first = rng.integers(len(there), size=PAIRS)
    second = (first + rng.integers(1, len(there), size=PAIRS)) % len(there)
    cosines = np.einsum("kd,kd->k", _unit(rows[there[first]]), _unit(rows[there[second]]))
    return float(cosines.mean()), max(float(cosines.std()), 1e-3)


def _told(
    weights: Tensor, ids: npt.NDArray[np.object_], may: npt.NDArray[np.bool_]
) -> tuple[tuple[str, ...], ...]:
    """Per hyperedge the ids of the items that weigh most in it; ties go to the earlier item."""
    rows = np.flatnonzero(may)
    order = np.argsort(-weights.numpy()[rows], axis=0, kind="stable")[:MEMBERS]
    return tuple(tuple(str(ids[row]) for row in rows[column]) for column in order.T)
