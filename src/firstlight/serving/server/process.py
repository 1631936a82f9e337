"""The server as a process: uvicorn, with limits on how long a client may take to ask and to take the answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from firstlight.serving.server.app import create_app
from firstlight.serving.server.guards import HEADERS
from firstlight.serving.server.problems import Problem, response
from firstlight.serving.server.served import OpenBundle
from firstlight.serving.server.settings import Settings

#: Seconds that an idle connection is kept.
_KEEP_ALIVE = 15
#: Bytes of an answer that the system holds for a client.
_HELD = 64 << 10
#: Bytes of an answer that a client must take in ``take_seconds`` where it does not keep up.
_LEAST = 16 << 10


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Uvicorn's protocol for clients that are slow, or no HTTP clients at all.

    The headers of a request must arrive in time, and who asks must also take the answer: a connection that does not
    take :data:`_LEAST` bytes in ``take_seconds`` is cut, and what waited for it is forgotten.
    """

    class Patient(H11Protocol):
        _headers_clock: asyncio.TimerHandle | None = None
        _answer_clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # What the system holds for a client is not seen here: if it held megabytes, a slow client would look like
            # one that takes nothing.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HELD)
            self._headers_clock = self.loop.call_later(settings.header_seconds, self._close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if not incomplete and self._headers_clock is not None:
                self._headers_clock.cancel()
                self._headers_clock = None
            elif incomplete and self._headers_clock is None:
                self._headers_clock = self.loop.call_later(settings.header_seconds, self._close)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._answer_clock is not None and not self.transport.is_closing():
                self._answer_clock.cancel()
                self._answer_clock = None

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._watch()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
                self._close()
                return
            answer = response(Problem(400, "The request is no HTTP", "", {"Connection": "close"}))
            head = h11.Response(
                status_code=400, headers=[*answer.raw_headers, *HEADERS], reason=b"Bad Request"
            )
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self._close()

        def connection_lost(self, exc: Exception | None) -> None:
            for clock in (self._headers_clock, self._answer_clock):
                if clock is not None:
                    clock.cancel()
            super().connection_lost(exc)

        def _close(self) -> None:
            """Close once what was said has been taken, but do not wait for that for ever."""
            self.transport.close()
            self._watch()

        def _watch(self) -> None:
            if self._answer_clock is None:
                left = self.transport.get_write_buffer_size()
                self._answer_clock = self.loop.call_later(settings.take_seconds, self._look, left)

        def _look(self, before: int) -> None:
            self._answer_clock = None
            if before - self.transport.get_write_buffer_size() < _LEAST:
                self.transport.abort()
            else:
                self._watch()

    return Patient


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, and nothing else: uvicorn raises them once more, and the process dies of it."""
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._listening(host, port)


def serve(
    open_bundle: OpenBundle,
    path: Path,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    listening: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are finished.

    Args:
        open_bundle: Opens a bundle or a run; a function of a module.
        path: What is served.
        settings: Limits, token, index.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        listening: Called with address and port once requests are taken.

    Raises:
        InputError: The catalogue cannot be opened.
    """
    app = create_app(open_bundle, path, settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        h11_max_incomplete_event_size=32 << 10,
        proxy_headers=False,
    )
    Server(config, listening).run()
