"""The server as a process: uvicorn, with a limit on how long a client may take to say what it wants."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from firstlight.serving.server.app import create_app
from firstlight.serving.server.settings import Settings
from firstlight.serving.server.state import OpenBundle

#: Seconds that an idle connection is kept.
_KEEP_ALIVE = 15


def _protocol(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol, but the headers of a request must arrive within ``seconds``."""

    class Patient(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._clock = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if not incomplete and self._clock is not None:
                self._clock.cancel()
                self._clock = None
            elif incomplete and self._clock is None:
                self._clock = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
            super().connection_lost(exc)

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
        http=_protocol(settings.header_seconds),
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
