"""The server's state: the catalogue that is served now, its one writer, and the process that encodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import torch

from firstlight.core.errors import FirstlightError, InputError
from firstlight.serving.bundle import Bundle
from firstlight.serving.contents import Kept
from firstlight.serving.server.batches import Batcher
from firstlight.serving.server.carry import Carried, Carry, StoppedError, pending
from firstlight.serving.server.catalogue import LIKE, Answer, Ask, Catalogue
from firstlight.serving.server.encoding import (
    Content,
    Encoded,
    EncoderLostError,
    EncoderProcess,
    RefusedError,
)
from firstlight.serving.server.metrics import SIZES, Metrics
from firstlight.serving.server.problems import Problem
from firstlight.serving.server.schemas import SimilarRequest
from firstlight.serving.server.served import OpenBundle, Served, last_refresh
from firstlight.serving.server.settings import Settings

log = logging.getLogger("firstlight.serving")

Result = TypeVar("Result")


class SwappedError(Exception):
    """Another bundle is served now than the one that this was meant for."""


class State:
    """Everything that lives as long as the server.

    Args:
        open_bundle: Opens a bundle or a run; a function of a module, since another process calls it, too.
        path: What is served; opened again for a reload.
        settings: Of the server.
    """

    def __init__(self, open_bundle: OpenBundle, path: Path, settings: Settings) -> None:
        self._open, self._path, self.settings = open_bundle, path, settings
        self.served = Served(open_bundle, path, settings)
        self.ready = False
        self.metrics = Metrics()
        _declare(self.metrics)
        self.lists: Batcher[Ask, Answer] = Batcher(self._make_lists, settings.max_batch)
        self._writer = ThreadPoolExecutor(1, "writer")
        self._encoders = ThreadPoolExecutor(2, "encoding")  # one waits while the other's process is replaced
        self._uploads = 0
        self._watcher: asyncio.Task[None] | None = None
        self._warming: asyncio.Future[Any] | None = None
        self._reloading = asyncio.Lock()
        self._task: asyncio.Task[Answer] | None = None
        self._next: Served | None = None
        self._ending = False

    @property
    def catalogue(self) -> Catalogue:
        """What readers ask."""
        return self.served.catalogue

    async def start(self) -> None:
        """Begin to serve."""
        await asyncio.to_thread(self._go_on_carrying)
        self.lists.start()
        if self.served.encoder is not None:
            loop = asyncio.get_running_loop()
            self._warming = loop.run_in_executor(self._encoders, _warm, self.served.encoder)
        if self.settings.poll_seconds:
            self._watcher = asyncio.create_task(self._watch())
        self.ready = True

    async def stop(self) -> None:
        """Finish what was begun."""
        self.ready, self._ending = False, True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        coming = self._next
        if coming is not None and coming.encoder is not None:  # a reload goes on at the next start
            await asyncio.to_thread(coming.encoder.stop)
        async with self._reloading:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # Uploads have been answered, or have had their time: the process may still be reading its model.
        if self.served.encoder is not None:
            self.served.encoder.stop()
        self._encoders.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        self.lists.stop()

    # Reading

    def _make_lists(self, asks: Sequence[Ask]) -> Sequence[Answer | Exception]:
        self.metrics.observe("firstlight_batch_size", len(asks))
        return self.catalogue.answer(asks)

    def gauges(self) -> dict[str, float]:
        """Values that are looked up when asked for."""
        snapshot = self.served.bundle.snapshot
        return {
            "firstlight_catalogue_version": snapshot.version,
            "firstlight_catalogue_items": int(snapshot.alive.sum()),
            "firstlight_catalogue_users": len(snapshot.base.user_ids),
            "firstlight_uploads_running": self._uploads,
        }

    # Writing

    async def write(self, served: Served, change: Callable[[], Result]) -> Result:
        """Let the one writer change the catalogue; durable when it returns.

        Raises:
            SwappedError: ``served`` is not served any more; nothing was written.
            Problem: It cannot be written.
        """

        def work() -> Result:
            if self.served is not served:
                raise SwappedError
            started = time.perf_counter()
            base = served.bundle.snapshot.base
            try:
                changed = change()
                if served.bundle.snapshot.base is not base:  # a rollback: until then readers search exactly
                    self._writer.submit(self._prepare, served)
                return changed
            except InputError as error:
                raise Problem(422, "The change was refused", error.problem) from error
            except FirstlightError as error:
                log.error("a write failed: %s", error)
                raise Problem(
                    503, "The catalogue cannot be written", "try again later", {"Retry-After": "5"}
                ) from error
            finally:
                self.metrics.observe("firstlight_write_seconds", time.perf_counter() - started)

        return await self._own(self._writer, work)

    @staticmethod
    def _prepare(served: Served) -> None:
        """Build what lists need for a base that this process put there itself."""
        try:
            served.catalogue.prepare()
        except FirstlightError as error:
            log.error("lists are made by exact search: %s", error)

    async def change(self, change: Callable[[Bundle], int]) -> dict[str, int]:
        """A change of the bundle that is served; gives the version."""
        while True:
            served = self.served
            with suppress(SwappedError):
                return {"version": await self.write(served, partial(change, served.bundle))}

    async def add(self, item: str, content: Content, *, replace: bool) -> Answer:
        """Make a new item recommendable.

        Raises:
            Problem: It is there already, cannot be used, or too many come at once.
        """
        if self._uploads >= self.settings.max_uploads:
            raise Problem(503, "Too many uploads", "try again in a moment", {"Retry-After": "1"})
        self._uploads += 1
        try:
            while True:
                with suppress(SwappedError):
                    return await self._add(self.served, item, content, replace)
        finally:
            self._uploads -= 1

    async def _add(self, served: Served, item: str, content: Content, replace: bool) -> Answer:
        bundle, encoder = served.bundle, served.encoder
        if encoder is None:
            raise Problem(409, "No new items", "the model of this catalogue knows items by their clicks only")
        if not replace:
            _refuse_known(bundle, item)
        started = time.perf_counter()
        try:
            encoded = await self._own(self._encoders, partial(encoder.encode, content))
        except RefusedError as error:
            raise Problem(422, "The item cannot be used", str(error)) from error
        except EncoderLostError as error:
            if self.served is not served or served.encoder is not encoder:
                raise SwappedError from error
            log.error("the encoder was lost: %s", error)
            self.metrics.count("firstlight_encoder_losses_total")
            raise Problem(503, "The item could not be encoded", "try again in a moment") from error
        finally:
            self.metrics.observe("firstlight_encode_seconds", time.perf_counter() - started)

        def insert() -> int:
            if served.encoder is not encoder:
                raise SwappedError
            if not replace:
                _refuse_known(bundle, item)
            return _insert(bundle, item, content, encoded)

        version = await self.write(served, insert)
        return await asyncio.to_thread(_landed, served.catalogue, item, version)

    async def reload(self) -> Answer:
        """Open what stands there now; requests that have begun end on what they began with.

        What was added to, removed from and ruled in the old catalogue goes along (:mod:`.carry`). Uploads that come
        meanwhile go into the old one, and along with the rest.

        Raises:
            Problem: It cannot be opened, or not be written to although there is something to carry; the old one is
                still served.
        """
        self._task = asyncio.create_task(self._reload())
        return await asyncio.shield(self._task)

    async def _reload(self) -> Answer:
        async with self._reloading:
            old = self.served
            try:
                gone = await self._own(self._writer, partial(last_refresh, old))
                carried = Carried(
                    0, tuple((item, "another bundle took the place of this one") for item in gone)
                )
                self._next = new = await asyncio.to_thread(Served, self._open, self._path, self.settings)
                if new.bundle.folder != old.bundle.folder:
                    carry = self._carry(old.bundle, old.path, new)
                    if carry.needed:
                        await asyncio.to_thread(carry.begin)
                        await asyncio.to_thread(carry.items)
                    carried = await self._own(self._writer, partial(self._change_over, old, new, carry))
            except (FirstlightError, StoppedError) as error:
                log.error("not reloaded: %s", error)
                if self._next is not None and self._next.encoder is not None:
                    self._next.encoder.stop()
                words = "the old one is still served; see the server's log"
                raise Problem(409, "The new bundle cannot be served", words) from error
            finally:
                self._next = None
            version = self.served.bundle.version
            lost = [{"id": item, "reason": why} for item, why in carried.lost]
            return {"version": version, "carried": carried.items, "lost": lost}

    def _carry(self, old: Bundle, source: Path, new: Served) -> Carry:
        return Carry(
            old,
            new.bundle,
            (source, new.path),
            new.encoder,
            max_pixels=self.settings.max_pixels,
            stopped=lambda: self._ending,
        )

    def _change_over(self, old: Served, new: Served, carry: Carry) -> Carried:
        """Serve another catalogue. Only the writer calls this: nothing is added to the old one any more."""
        last_refresh(old)
        carried = Carried()
        if carry.needed:
            carry.begin()
            carry.items()
            carried = carry.finish()
            carried.tell(old.path)
        new.catalogue.prepare()
        self.served = new
        if new.encoder is not None:
            self._encoders.submit(_warm, new.encoder)
        if old.encoder is not None:  # what it is at is encoded again, by the new one
            old.encoder.stop()
        return carried

    def _go_on_carrying(self) -> None:
        """Finish what a server that was killed had begun."""
        new = self.served
        source = pending(new.bundle)
        if source is None:
            return
        try:
            carry = self._carry(self._open(source), source, new)
            carry.items()
            carry.finish().tell(source)
            new.catalogue.prepare()
        except StoppedError:
            return
        except FirstlightError as error:
            log.error("what was added to %s is not carried over: %s", source, error)

    async def _watch(self) -> None:
        """Take over, every now and then, what other processes have written."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            try:
                await self._own(self._writer, lambda: self.served.refresh())
            except FirstlightError as error:
                log.error("what stands on disk cannot be read; the version before it is served: %s", error)
            except Exception:  # such as a network disk that is away for a moment: the next look may succeed
                log.exception("looking for what other processes wrote failed; it is tried again")

    @staticmethod
    async def _own(executor: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        """Run to the end in a thread, even if who asked goes away."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(executor, work))


def _warm(encoder: EncoderProcess) -> None:
    try:
        encoder.start()
    except EncoderLostError as error:
        log.error("the encoder does not start: %s", error)


def _refuse_known(bundle: Bundle, item: str) -> None:
    if bundle.snapshot.row(item) is not None:
        raise Problem(
            409, "The item is there already", f"{item!r} is in the catalogue; replace=true replaces it"
        )


def _insert(bundle: Bundle, item: str, content: Content, encoded: Encoded) -> int:
    table = pl.DataFrame({name: [text] for name, text in content.texts.items()})
    kept = Kept(content.texts, content.cover, content.features).to_bytes()
    vector = torch.from_numpy(encoded.vector)[None]
    return bundle.add_items([item], vector, table, [encoded.cover], encoded.extras, [kept])


def _landed(catalogue: Catalogue, item: str, version: int) -> Answer:
    """What a new item is like, and who would like it."""
    snapshot = catalogue.bundle.snapshot
    if snapshot.row(item) is None:  # somebody has removed it meanwhile
        return {"id": item, "version": version, "similar": [], "audience": []}
    similar = catalogue.similar(snapshot, SimilarRequest(item=item, k=LIKE))
    return {
        "id": item,
        "version": version,
        "similar": similar["items"],
        "audience": catalogue.audience(snapshot, item),
    }


def _declare(metrics: Metrics) -> None:
    declared: Mapping[str, tuple[str, str]] = {
        "firstlight_requests_total": ("counter", "Requests by method, route and status."),
        "firstlight_request_seconds": (
            "histogram",
            "Seconds from the first byte of a request to its answer.",
        ),
        "firstlight_write_seconds": ("histogram", "Seconds until a change is durable."),
        "firstlight_encode_seconds": ("histogram", "Seconds that a new item waits for its vector."),
        "firstlight_encoder_losses_total": ("counter", "Encoder processes that died or took too long."),
        "firstlight_catalogue_version": ("gauge", "Version of the catalogue."),
        "firstlight_catalogue_items": ("gauge", "Items in the catalogue."),
        "firstlight_catalogue_users": ("gauge", "Users of the log."),
        "firstlight_uploads_running": ("gauge", "Uploads that are not answered yet."),
    }
    for name, (kind, text) in declared.items():
        metrics.declare(name, kind, text)
    metrics.declare("firstlight_batch_size", "histogram", "Lists that were made together.", SIZES)
