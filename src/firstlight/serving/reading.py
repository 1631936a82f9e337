"""What the model of a catalogue reads of an item, in words: what is told where something is not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstlight.core.errors import InputError
from firstlight.views.viewset import ViewSet

#: Columns that are kept or understood without being content: they need no word where no view reads them.
_NO_CONTENT = frozenset({"item", "cover", "role", "arrived"})


class NoContentError(InputError):
    """Items have nothing that the model reads.

    Args:
        rows: Their rows.
        total: How many items there are.
        reads: What the model reads.
    """

    def __init__(self, rows: npt.NDArray[np.int64], total: int, reads: Reads) -> None:
        self.rows, self.total, self.reads = rows, total, reads
        super().__init__(
            f"{len(rows)} of the new items have no content that the model reads; the first is number {rows[0] + 1}",
            hint=f"the model reads: {reads}",
        )


@dataclass(frozen=True)
class Reads:
    """What views read.

    Attributes:
        columns: Columns of the item table.
        texts: Those of them that are read word by word, and so say nothing where training had none of the words.
        features: Names of ready-made features.
        views: A phrase for each view.
    """

    columns: frozenset[str]
    texts: frozenset[str]
    features: frozenset[str]
    views: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.views)

    @classmethod
    def of(cls, views: ViewSet, names: Sequence[str]) -> Reads:
        """What the views of these names read."""
        columns: dict[str, None] = {}
        texts, features, phrases = set(), set(), []
        for name in names:
            view = views.views[name]
            if view.kind == "feature":
                features.add(name)
                phrases.append(f"{name} (a feature)")
                continue
            own = getattr(view, "columns", (getattr(view, "column", "cover"),))
            columns |= dict.fromkeys(own)
            texts |= set(own) if view.kind == "text" else set()
            phrases.append(f"{name} ({'column' if len(own) == 1 else 'columns'} {', '.join(own)})")
        return cls(frozenset(columns), frozenset(texts), frozenset(features), tuple(phrases))

    def unread(self, columns: Sequence[str], features: Sequence[str]) -> list[str]:
        """What is passed over of new items, a sentence each."""
        kinds = (
            ("columns", [name for name in columns if name not in self.columns | _NO_CONTENT]),
            ("features", [name for name in features if name not in self.features]),
        )
        return [
            f"{kind} not read by the model: {', '.join(names)} (it reads: {self})"
            for kind, names in kinds
            if names
        ]

    def check_features(self, names: Sequence[str]) -> None:
        """Refuse features that somebody named and the model does not know.

        Raises:
            InputError: There is one.
        """
        for name in names:
            if name not in self.features:
                known = ", ".join(sorted(self.features))
                raise InputError(
                    f"the model reads no feature {name!r}",
                    hint=f"its features are: {known}" if known else f"it has no features; it reads: {self}",
                )
