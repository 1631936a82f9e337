"""A click log, its split, its raw ids and its catalogue, as one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from firstlight.core.hashing import hash_strings
from firstlight.data.catalogue import Catalogue
from firstlight.data.interactions import Interactions


@dataclass(frozen=True)
class SplitInfo:
    """How a dataset was split.

    Attributes:
        name: ``given`` (came with the files), ``random``, ``time``, ``leave-last`` or ``cold-items``.
        seed: The seed, where one was used.
        hash: SHA-256 over the parts.
    """

    name: str
    seed: int | None
    hash: str


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Everything a run reads.

    Attributes:
        name: Short name, for tables (the folder's name by default).
        user_ids: ``(n_users,)`` raw user ids as strings; row ``u`` of every matrix is ``user_ids[u]``.
        item_ids: ``(n_items,)`` raw item ids as strings.
        train: Pairs to learn from (all pairs if the dataset is not split).
        valid: Pairs for model selection, or None.
        test: Pairs for the final numbers, or None.
        catalogue: Item texts, covers, features.
        source: Where the data came from (a path or ``simulate``), for provenance.
        split: How it was split, or None.
        dropped: reason -> number of input rows that were dropped.
        notes: What else was odd about the input, a sentence each; commands say them.
    """

    name: str
    user_ids: pl.Series
    item_ids: pl.Series
    train: Interactions
    valid: Interactions | None = None
    test: Interactions | None = None
    catalogue: Catalogue = field(default_factory=Catalogue)
    source: str = ""
    split: SplitInfo | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        pairs = ", ".join(f"{name} {part.n_pairs:,}" for name, part in self.parts.items())
        split = "not split" if self.split is None else f"split: {self.split.name}"
        content = [name for name in self.catalogue.items.columns if name != "role"]
        content += list(self.catalogue.features)
        told = f"; content: {', '.join(content)}" if content else ""
        return (
            f"<Dataset {self.name!r}: {self.n_users:,} users, {self.n_items:,} items; "
            f"pairs: {pairs} ({split}){told}>"
        )

    def summary(self) -> dict[str, Any]:
        """Counts and hashes as JSON values: what ``firstlight data split --json`` prints."""
        known = self.split
        return {
            "name": self.name,
            "users": self.n_users,
            "items": self.n_items,
            "pairs": {name: part.n_pairs for name, part in self.parts.items()},
            "split": None if known is None else {"name": known.name, "seed": known.seed, "hash": known.hash},
            "dropped": dict(self.dropped),
            "notes": list(self.notes),
            "content_hash": self.content_hash,
        }

    @property
    def n_users(self) -> int:
        """Number of user rows."""
        return self.train.n_users

    @property
    def n_items(self) -> int:
        """Number of item rows."""
        return self.train.n_items

    @property
    def parts(self) -> dict[str, Interactions]:
        """The parts that exist, by name, in the order train, valid, test."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over ids and all parts: two datasets with equal hashes train equal models."""
        return hash_strings(
            [
                hash_strings(self.user_ids.cast(pl.String)),
                hash_strings(self.item_ids.cast(pl.String)),
                *(f"{name}={part.content_hash()}" for name, part in self.parts.items()),
            ]
        )
