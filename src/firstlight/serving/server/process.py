"""The server as a process: uvicorn, with limits on how many clients there are and how much time each may take."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from firstlight.core.errors import FirstlightError, InputError
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
#: Files that the process needs beside its connections: segments, covers, the page, libraries.
_FILES = 256


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Uvicorn's protocol for clients that are slow, or no HTTP clients at all.

    The headers of a request must arrive in time, and who asks must also take the answer: a connection that does not
    take :data:`_LEAST` bytes in ``take_seconds`` is cut, and what waited for it is forgotten. Beyond
    ``max_connections`` the one that has been without a request for longest makes room: each holds a file of the
    process, and a server without files to open could not keep what it is told.
    """

    class Patient(H11Protocol):
        _headers_clock: asyncio.TimerHandle | None = None
        _answer_clock: asyncio.TimerHandle | None = None
        _waits_since = 0.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waits_since = self.loop.time()
            # What the system holds for a client is not seen here: if it held megabytes, a slow client would look like
            # one that takes nothing.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HELD)
            self._headers_clock = self.loop.call_later(settings.header_seconds, self._close)
            if len(self.connections) > settings.max_connections:
                self._make_room()

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
            self._waits_since = self.loop.time()
            if self.transport.is_closing():
                self._watch()

        def _make_room(self) -> None:
            """End the connection that has waited longest for its next request, or this one."""
            open_ones = [
                other
                for other in self.connections
                if isinstance(other, Patient) and not other.transport.is_closing()
            ]
            if len(open_ones) <= settings.max_connections:  # others are on their way out
                return
            waiting = [
                o for o in open_ones if o is not self and (o.cycle is None or o.cycle.response_complete)
            ]
            if waiting:
                min(waiting, key=lambda other: other._waits_since)._close()
            else:
                self._answer(
                    Problem(503, "Too many connections", "try again in a moment", {"Retry-After": "1"})
                )

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
                self._close()
                return
            self._answer(Problem(400, "The request is no HTTP"))

        def _answer(self, problem: Problem) -> None:
            """Answer without asking the application, and close."""
            answer = response(problem)
            headers = [*answer.raw_headers, *HEADERS, (b"connection", b"close")]
            reason = HTTPStatus(problem.status).phrase.encode()
            head = h11.Response(status_code=problem.status, headers=headers, reason=reason)
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
        """Begin to listen.

        Raises:
            FirstlightError: Somebody has taken the port since :func:`check_address`.
        """
        try:
            await super().startup(sockets)
        except SystemExit as error:  # uvicorn ends the process where it cannot listen
            raise _taken(self.config.host, self.config.port, "it cannot be listened at") from error
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._listening(host, port)


def check_address(host: str, port: int) -> None:
    """Find out whether one can listen there, before minutes go into reading a catalogue.

    Raises:
        InputError: There is no such host here.
        FirstlightError: The port is taken, or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"there is no host {host!r} to listen at", hint="choose another --host") from error
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself listens
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(
                    f"{host!r} is no address of this machine", hint="choose another --host"
                ) from error
            taken = error.errno == errno.EADDRINUSE
            reason = "another program listens there" if taken else error.strerror or str(error)
            raise _taken(host, port, reason) from error


def _taken(host: str, port: int, reason: str) -> FirstlightError:
    return FirstlightError(f"port {port} of {host} cannot be used: {reason}\n  → choose another --port")


def _allow_files(wanted: int) -> None:
    """Let the process open as many files, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        InputError: The catalogue cannot be opened, or there is no such host.
        FirstlightError: The port is taken.
    """
    check_address(host, port)
    app = create_app(open_bundle, path, settings)
    _allow_files(settings.max_connections + _FILES)
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
