"""A catalogue as it is served: a bundle, its index, and the process that makes vectors for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from firstlight.core.errors import FirstlightError, InputError
from firstlight.serving.base import FolderBase
from firstlight.serving.bundle import Bundle
from firstlight.serving.server.catalogue import Catalogue
from firstlight.serving.server.encoding import EncoderProcess
from firstlight.serving.server.settings import Settings

log = logging.getLogger("firstlight.serving")

OpenBundle = Callable[[Path], Bundle]


class Served:
    """A catalogue and the process that makes vectors for it.

    Args:
        open_bundle: Opens a bundle or a run.
        path: Where it is; a link is followed once, here, since it may lead elsewhere a minute later.
        settings: Of the server.
    """

    def __init__(self, open_bundle: OpenBundle, path: Path, settings: Settings) -> None:
        self.path = path.resolve()
        opener = partial(open_bundle, self.path)
        self.bundle = opener()
        self.catalogue = Catalogue(self.bundle, settings.index)
        self.catalogue.prepare()
        self._opener, self._seconds = opener, settings.encode_seconds
        self._key = encoder_key(self.bundle)
        self.encoder = EncoderProcess(opener, self._seconds) if self._key else None

    def refresh(self) -> list[str]:
        """Take over what other processes wrote, and what follows from it. Only the writer calls this.

        Returns:
            Items that had been added and are gone, although nobody removed them: another bundle stands here, or an
            older version.
        """
        before = self.bundle.snapshot
        if not self.bundle.reload():
            return []
        self.catalogue.prepare()
        key = encoder_key(self.bundle)
        if key != self._key:  # another model stands there now
            old, self._key = self.encoder, key
            self.encoder = EncoderProcess(self._opener, self._seconds) if key else None
            if old is not None:
                old.stop()
        snapshot = self.bundle.snapshot
        if snapshot.base is before.base:
            return []
        gone = [i for i in before.added() if snapshot.row(i) is None and i not in snapshot.removed]
        if gone:
            log.warning(
                "%d items that had been added are not in %s any more: %r …", len(gone), self.path, gone[0]
            )
        return gone


def encoder_key(bundle: Bundle) -> str:
    """Another encoder has another one; empty where there is none."""
    base = bundle.snapshot.base
    if isinstance(base, FolderBase):
        return "".join(
            entry[0] for name, entry in sorted(base.about["files"].items()) if name.startswith("encoder/")
        )
    try:
        bundle.encoder()
    except InputError:
        return ""
    return base.fingerprint


def last_refresh(old: Served) -> list[str]:
    """The last state of a catalogue that will not be served any more; what is known of it, if it has been deleted."""
    try:
        return old.refresh()
    except FirstlightError as error:
        log.warning("%s cannot be read any more: %s", old.path, error)
        return []
