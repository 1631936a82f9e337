"""From one catalogue to the next: what was added, removed and ruled goes along.

A vector means something to one model only, so what was added is encoded again, from the content that was kept of it,
and added to the new catalogue before anybody is served from it. Until all is there, ``carry.json`` in the new catalogue
says where it comes from, and a server that was killed in between goes on with it at its next start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from firstlight.core.errors import InputError
from firstlight.core.files import read_json, writing
from firstlight.serving.bundle import Bundle, state_segment
from firstlight.serving.contents import Kept
from firstlight.serving.journal import CARRY
from firstlight.serving.segment import Rules, Segment
from firstlight.serving.server.encoding import (
    Content,
    Encoded,
    EncoderLostError,
    EncoderProcess,
    RefusedError,
)
from firstlight.serving.snapshot import Snapshot

log = logging.getLogger("firstlight.serving")

#: Lost items that the log names one by one.
_NAMED = 100
#: Items, and bytes of their content, that are added at once: a batch is held in memory.
_BATCH, _BATCH_BYTES = 256, 64 << 20


class StoppedError(Exception):
    """The server ends."""


class _NotPossibleError(Exception):
    """An item cannot be carried; the message says why."""


@dataclass(frozen=True)
class Carried:
    """What came of it.

    Attributes:
        items: Number of items that were encoded again and are in the new catalogue.
        lost: Raw id → why an item could not be carried; it is in the old catalogue only.
    """

    items: int = 0
    lost: tuple[tuple[str, str], ...] = ()

    def tell(self, old: Path) -> None:
        """Write it to the log."""
        if self.items:
            log.info("%d items that were added to %s are carried over", self.items, old)
        for item, why in self.lost[:_NAMED]:
            log.warning("item %r of %s is not carried over: %s", item, old, why)
        if len(self.lost) > _NAMED:
            log.warning("and %d more", len(self.lost) - _NAMED)


class Carry:
    """What goes from an old catalogue into a new one.

    Args:
        old: The catalogue that is served.
        new: The one that will be.
        places: Where the old one and the new one are.
        encoder: Makes vectors for the new one; None where its model reads no content.
        max_pixels: Largest cover.
        stopped: Whether the server ends.
    """

    def __init__(
        self,
        old: Bundle,
        new: Bundle,
        places: tuple[Path, Path],
        encoder: EncoderProcess | None,
        *,
        max_pixels: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._old, self._new, self._encoder = old, new, encoder
        self._source, self._target = map(str, places)
        self._max_pixels, self._stopped = max_pixels, stopped
        #: Versions of the old catalogue: what the new one has taken over before, and what was looked through here.
        self._first = self._since = new.snapshot.taken.get(self._source)
        self._back = old.snapshot.taken.get(self._target) == new.version
        self._begun = False
        self._put: set[str] = set()
        self._lost: dict[str, str] = {}

    @property
    def needed(self) -> bool:
        """Whether the old catalogue has anything that the new one lacks, or had it when this began."""
        if self._begun:
            return True
        if self._first == self._old.version:  # another server has carried all of it
            return False
        snapshot = self._new.snapshot
        return bool(self._wanted() or self._gone(snapshot)) or self._rules(snapshot) != snapshot.rules

    def begin(self) -> None:
        """Say in the new catalogue that something is on its way.

        Raises:
            FirstlightError: It cannot be written.
        """
        with writing(self._new.folder / CARRY) as temporary:
            temporary.write_text(json.dumps({"from": self._source}) + "\n", encoding="utf-8")
        self._begun = True

    def items(self) -> None:
        """Encode and add what has come to the old catalogue since the last call; meanwhile both can be used.

        Raises:
            StoppedError: The server ends.
            FirstlightError: The new catalogue cannot be written.
        """
        version, additions, wanted = self._old.version, self._old.additions(), self._wanted()
        batch: dict[str, tuple[bytes, Encoded]] = {}
        for at, item in enumerate(additions.ids):
            if item not in wanted:
                continue
            self._lost.pop(item, None)
            try:
                content = additions.read(at)
                batch[item] = content, self._encoded(content)
            except RefusedError as error:
                self._lost[item] = f"its content cannot be used: {error}"
            except InputError as error:  # names a path, which is for the log alone
                log.warning("the content of item %r cannot be read: %s", item, error)
                self._lost[item] = "its content cannot be read; see the server's log"
            except _NotPossibleError as error:
                self._lost[item] = str(error)
            if len(batch) >= _BATCH or sum(len(one) for one, _ in batch.values()) > _BATCH_BYTES:
                self._add(batch)
                batch = {}
        self._add(batch)
        self._since = version

    def finish(self) -> Carried:
        """Take over removals, blocks and boosts, and be done; durable when it returns.

        Raises:
            FirstlightError: It cannot be written.
        """

        def make(snapshot: Snapshot) -> Segment | None:
            gone, rules = self._gone(snapshot), self._rules(snapshot)
            changed = rules != snapshot.rules
            if not (gone or changed or self._put):
                return None
            taken = {self._source: self._old.version}
            state = state_segment(snapshot.base.dim, rules if changed else None, taken)
            return replace(state, removed=tuple(gone))

        self._new.change(make)
        with suppress(OSError):
            (self._new.folder / CARRY).unlink(missing_ok=True)
        lost = {item: why for item, why in self._lost.items() if self._old.snapshot.row(item) is not None}
        return Carried(len(self._put), tuple(lost.items()))

    def _wanted(self) -> frozenset[str]:
        """Additions of the old catalogue that came since the last look and are not in the new one."""
        new = self._new.snapshot
        added = (i for i in self._old.additions().ids if new.row(i) is None or i in self._put)
        touched = None if self._since is None else self._old.touched(self._since)
        return frozenset(added if touched is None else touched.intersection(added))

    def _encoded(self, content: bytes) -> Encoded:
        if not content:
            raise _NotPossibleError("its content was not kept")
        if self._encoder is None:
            raise _NotPossibleError("the new model reads no content")
        kept = Kept.from_bytes(content)
        given = Content(kept.texts, kept.cover, kept.features, self._max_pixels)
        for again in (True, False):
            if self._stopped():
                raise StoppedError
            try:
                encoded = self._encoder.encode(given)
                if not np.isfinite(encoded.vector).all():
                    raise _NotPossibleError("its vector is not finite")
                return encoded
            except EncoderLostError as error:
                if not again and not self._stopped():
                    raise _NotPossibleError(f"the encoder was lost: {error}") from error
        raise StoppedError

    def _add(self, batch: dict[str, tuple[bytes, Encoded]]) -> None:
        texts = {item: self._old.snapshot.texts_of(item) for item in batch}
        batch = {
            item: entry for item, entry in batch.items() if texts[item] is not None
        }  # or removed meanwhile
        if not batch:
            return
        columns = dict.fromkeys(name for item in batch for name in texts[item] or {})
        table = {name: [(texts[item] or {}).get(name) for item in batch] for name in columns}
        encoded = [entry for _, entry in batch.values()]
        self._new.add_items(
            list(batch),
            torch.from_numpy(np.stack([one.vector for one in encoded])),
            pl.DataFrame(table, schema=dict.fromkeys(table, pl.String)),
            [one.cover for one in encoded],
            {name: np.concatenate([one.extras[name] for one in encoded]) for name in encoded[0].extras},
            [content for content, _ in batch.values()],
        )
        self._put |= batch.keys()

    def _gone(self, snapshot: Snapshot) -> list[str]:
        """What was removed from the old catalogue and is in the new one."""
        touched = None if self._first is None else self._old.touched(self._first)
        removed = self._old.snapshot.removed
        removed = removed if touched is None else removed & touched
        return sorted(item for item in removed if snapshot.row(item) is not None)

    def _rules(self, snapshot: Snapshot) -> Rules:
        """What is blocked in either, and the boosts of both; those of the new catalogue count where they differ.

        Unless the old one had taken over the new one's as they are: then what it changed since is the last word.
        """
        old, new = self._old.snapshot, snapshot.rules
        if self._back:
            return old.rules
        return Rules(old.rules.blocked | new.blocked, {**old.rules.boosts, **new.boosts})


def pending(bundle: Bundle) -> Path | None:
    """Where a carry comes from that was begun and not finished."""
    try:
        found: Any = read_json(bundle.folder / CARRY)
        return Path(found["from"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.error("%s cannot be read, and what it tells of is not carried over: %s", CARRY, error)
        return None
