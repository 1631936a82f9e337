"""Covers are decoded and encoded in a process of their own: a picture that brings it down takes nothing along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.serving.bundle import Bundle
from firstlight.serving.encoder import ContentEncoder
from firstlight.serving.extras import Extras
from firstlight.serving.pictures import thumbnail
from firstlight.vision.decoder import UnusableImageError

#: Makes a bundle again, in another process, too: a function of a module, or a partial of one.
Opener = Callable[[], Bundle]

log = logging.getLogger("firstlight.serving")

#: Seconds until the process must have read its model.
_START_SECONDS = 120.0
#: How eager it is beside the process that answers readers (``nice``).
_NICE = 5


@dataclass(frozen=True, eq=False)
class Content:
    """What a new item brings.

    Attributes:
        texts: Text columns; texts, lists of them, or numbers.
        cover: A picture file, or None.
        features: Name → values.
        max_pixels: Largest picture.
    """

    texts: dict[str, Any]
    cover: bytes | None = None
    features: dict[str, list[float]] = field(default_factory=dict)
    max_pixels: int = 50_000_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """What becomes of it: ``(dim,)`` vector in scoring space, a small cover, and rows ``(1, ·)`` beside the vector."""

    vector: npt.NDArray[np.float32]
    cover: bytes | None
    extras: Extras = field(default_factory=dict)


class RefusedError(Exception):
    """The content cannot be used; the message says why."""


class EncoderLostError(Exception):
    """The process died or took too long."""


def encode(encoder: ContentEncoder, content: Content) -> Encoded:
    """One item, as the process does it.

    Raises:
        RefusedError: The cover cannot be decoded, or there is nothing that the model reads.
    """
    columns: dict[str, pl.Series] = {name: pl.Series([text]) for name, text in content.texts.items()}
    cover = None
    if content.cover is not None:
        try:
            cover = thumbnail(content.cover, max_pixels=content.max_pixels)
        except UnusableImageError as error:
            raise RefusedError(f"the cover cannot be used: {error}") from error
        columns["cover"] = pl.Series([content.cover], dtype=pl.Binary)
    if not columns:  # a table must have a row, even if nothing stands in it
        columns["title"] = pl.Series([None], dtype=pl.String)
    features = {
        name: FeatureMatrix(np.array([values], np.float32), np.ones(1, np.bool_), "given")
        for name, values in content.features.items()
    }
    try:
        placed = encoder.place(Catalogue(pl.DataFrame(columns), features), None)
    except InputError as error:
        raise RefusedError(f"{error.problem}" + (f"; {error.hint}" if error.hint else "")) from error
    return Encoded(placed.vectors[0].to(torch.float32).numpy(), cover, placed.extras)


def _serve(pipe: Connection, opener: Opener) -> None:
    """The life of the process; it ends when the other end of the pipe goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the server ends this one
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(OSError):  # Linux: where memory runs out, it is this process that must go
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    torch.set_num_threads(1)
    encoder = opener().encoder()
    pipe.send(True)
    while True:
        try:
            content = pipe.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = encode(encoder, content)
        except RefusedError as error:
            answer = str(error)
        except Exception:  # one item that nobody thought of is no reason to read the model again
            log.exception("an item could not be encoded")
            answer = "it cannot be encoded"
        pipe.send(answer)


class EncoderProcess:
    """The process, started again whenever it is lost. One item at a time; others wait.

    Args:
        opener: Makes the bundle whose encoder is used.
        seconds: How long one item may take.
    """

    def __init__(self, opener: Opener, seconds: float) -> None:
        self._opener, self._seconds = opener, seconds
        self._turn = threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._closed = False

    def start(self) -> None:
        """Start and wait until the model is read.

        Raises:
            EncoderLostError: It does not come up.
        """
        with self._turn:
            self._ensure()

    def encode(self, content: Content) -> Encoded:
        """One item.

        Raises:
            RefusedError: The content cannot be used.
            EncoderLostError: The process died or took too long; the next item gets a new one.
        """
        with self._turn:
            pipe = self._ensure()
            try:
                pipe.send(content)
                if not pipe.poll(self._seconds):
                    raise EncoderLostError("took too long")
                answer = pipe.recv()
            except (EncoderLostError, EOFError, OSError) as error:
                self._drop()
                raise EncoderLostError(str(error) or "ended") from error
        if isinstance(answer, str):
            raise RefusedError(answer)
        assert isinstance(answer, Encoded)
        return answer

    def stop(self) -> None:
        """End the process, whatever it is at: who waits for it is told that it is lost."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._turn:
            self._drop()

    def _ensure(self) -> Connection:
        if self._closed:
            raise EncoderLostError("closed")
        if self._pipe is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._opener), name="encoder", daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, mine
        try:
            if not mine.poll(_START_SECONDS):
                raise EncoderLostError("did not start in time")
            mine.recv()
        except (EncoderLostError, EOFError, OSError) as error:
            self._drop()
            raise EncoderLostError(str(error) or "did not start") from error
        return mine

    def _drop(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()
