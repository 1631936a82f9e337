"""New items by their content: placed, and added with all that a catalogue keeps of them."""

from __future__ import annotations

from firstlight.data.catalogue import with_ids
from firstlight.serving.bundle import Bundle
from firstlight.serving.contents import contents_of
from firstlight.serving.encoder import ContentEncoder
from firstlight.serving.new_items import NewItems


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
    placed = encoder.place(with_ids(new.catalogue, new.ids), new.folder)
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
