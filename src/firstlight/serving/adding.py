"""New items by their content: placed, and added with all that a catalogue keeps of them."""

from __future__ import annotations

import numpy as np

from firstlight.core.errors import InputError
from firstlight.data.catalogue import with_ids
from firstlight.serving.bundle import Bundle
from firstlight.serving.contents import contents_of
from firstlight.serving.encoder import ContentEncoder, Placed
from firstlight.serving.new_items import NewItems
from firstlight.serving.reading import NoContentError
from firstlight.views.words import pieces


def without_known(bundle: Bundle, new: NewItems) -> NewItems:
    """The items that the catalogue never held: neither there now, nor taken out by somebody."""
    snapshot = bundle.snapshot
    known = [snapshot.row(item) is not None or item in snapshot.removed for item in new.ids]
    return new if not any(known) else new.select([row for row, old in enumerate(known) if not old])


def refuse_clicked(bundle: Bundle, new: NewItems) -> None:
    """Refuse items that people have clicked: content would take the place of what training learned of them.

    Raises:
        InputError: There is one.
    """
    clicks = bundle.snapshot.base.seen.item_degrees
    rows = [bundle.snapshot.row(item) for item in new.ids]
    clicked = [at for at, row in enumerate(rows) if row is not None and row < len(clicks) and clicks[row]]
    if clicked:
        raise InputError(
            f"{len(clicked):,} of the {len(rows):,} items have clicks, and vectors that training made of them; the "
            f"first is {new.named(clicked[0])}. Nothing was added.",
            path=new.source,
            hint="--skip-known adds only items that are not there yet; --replace ranks all of them by content alone "
            "from now on",
        )


def add_new_items(
    bundle: Bundle, new: NewItems, encoder: ContentEncoder | None = None, *, pictures: bool = True
) -> tuple[int, list[str]]:
    """Add items, or replace those whose ids are there already. Durable when it returns.

    Args:
        bundle: Where to.
        new: The items.
        encoder: That of the bundle, where it has been read already.
        pictures: Whether small pictures of the covers are kept.

    Returns:
        The version that holds them; and what could not be used or kept, a sentence each.

    Raises:
        InputError: The model reads no content, an item has none that it reads, or an id cannot be used. Nothing is
            added then.
        FirstlightError: Another writer is at work, or the disk is full. Nothing is added then.
    """
    encoder = encoder or bundle.encoder()
    placed = _placed(new, encoder)
    contents, notes = contents_of(new)
    version = bundle.add_items(
        new.ids,
        placed.vectors,
        new.catalogue.items,
        new.pictures() if pictures else (),
        placed.extras,
        contents,
    )
    return version, [*encoder.views.problems, *notes]


def _placed(new: NewItems, encoder: ContentEncoder) -> Placed:
    """Vectors of the items, or what is wrong with them by their ids."""
    try:
        if new.ids and not new.catalogue.items.width and not new.catalogue.features:
            raise NoContentError(np.arange(len(new.ids)), len(new.ids), encoder.reads)  # a table of ids alone
        return encoder.place(with_ids(new.catalogue, new.ids), new.folder)
    except NoContentError as error:
        first = int(error.rows[0])
        reasons = list(encoder.views.problems)
        if _has_words(new, first, error.reads.texts):
            reasons.append(f"the text of {new.named(first)} has no word that training knew")
        raise InputError(
            f"{len(error.rows):,} of the new items have no content that the model reads; the first is "
            f"{new.named(first)}" + "".join(f"; {reason}" for reason in reasons),
            path=new.source,
            hint=f"the model reads: {error.reads}",
        ) from error


def _has_words(new: NewItems, row: int, columns: frozenset[str]) -> bool:
    table = new.catalogue.items
    return any(name in table.columns and any(pieces(table[name][row])) for name in columns)
