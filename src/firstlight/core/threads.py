"""Work shared out to threads that each run torch on one thread of their own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Job = TypeVar("Job")
Made = TypeVar("Made")


def in_threads(
    work: Callable[[Job], Made], jobs: Iterable[Job], threads: int | None = None, *, ahead: int = 4
) -> Iterator[Made]:
    """``map(work, jobs)`` in order, a few jobs ahead of the reader, each with one torch thread.

    Args:
        work: Called in threads.
        jobs: What it is called with.
        threads: Jobs at a time; as many as torch may use if None.
        ahead: Jobs a thread that are made before they are read.
    """
    threads = threads or torch.get_num_threads()
    with _pool(threads) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > ahead * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the reader stopped early, or a job failed
            for future in waiting:
                future.cancel()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)
    with ThreadPoolExecutor(threads, "work", _use_one_thread) as pool:
        for _ in range(threads):
            pool.submit(started.wait)
        started.wait()
        # The setting is each thread's own, but also the default of threads that start later: put it back.
        torch.set_num_threads(before)
        yield pool


def _use_one_thread() -> None:
    # A thread takes over the process's number when it first asks for it, and would then forget its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
