"""Micro-batches: requests that arrive while others are computed are computed together next."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")


class Batcher(Generic[Job, Done]):
    """One thread that takes whatever waits, and computes it at once; nobody waits for a batch to fill.

    Args:
        work: Jobs to results, in order; a result that is an exception is raised to who asked.
        limit: Largest batch.
    """

    def __init__(self, work: Callable[[Sequence[Job]], Sequence[Done | Exception]], limit: int) -> None:
        self._work, self._limit = work, limit
        self._waiting: queue.SimpleQueue[tuple[Job, asyncio.Future[Done]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lists", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin; called from the event loop that asks."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def ask(self, job: Job) -> Done:
        """The result of a job."""
        assert self._loop is not None
        done: asyncio.Future[Done] = self._loop.create_future()
        self._waiting.put((job, done))
        return await done

    def stop(self) -> None:
        """Finish what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        assert self._loop is not None
        going = True
        while going:
            first = self._waiting.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < self._limit:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    going = False
                    break
                batch.append(more)
            results: Sequence[Done | Exception]
            try:
                results = self._work([job for job, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            futures = [done for _, done in batch]
            try:
                self._loop.call_soon_threadsafe(_deliver, futures, results)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return


def _deliver(futures: Sequence[asyncio.Future[Done]], results: Sequence[Done | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():  # the client has gone
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
