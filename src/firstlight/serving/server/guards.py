"""What every request passes before the application sees it: size, time, number, token; and what answers carry."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from firstlight.serving.server.metrics import Metrics
from firstlight.serving.server.problems import Problem, response
from firstlight.serving.server.settings import Settings

log = logging.getLogger("firstlight.serving")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The page needs nothing but this server; see its own copy of this in ``page/index.html``.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: Methods and paths that change something. Everything else only reads.
_WRITES = re.compile(r"(POST|DELETE) /v1/(items(/[^/]*)?|block|boost|reload|rollback)")
_UPLOAD = ("POST", "/v1/items")


class GoneError(Exception):
    """The client has gone away before its request was whole."""


class Guard:
    """ASGI middleware.

    The body is read here, whole, bounded in size and time, before anything is done with it; of a write, only after
    the token was seen. Who sends it slowly takes no place of those whose requests are there. Paths reach the
    application as they were sent, percent-encoded: an id may hold slashes, and what the guard looks at and what is
    routed is one text.

    Args:
        app: The application.
        settings: Limits and token.
        metrics: Where requests are counted.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._running = 0
        self._arriving: dict[asyncio.Timeout, None] = {}  # in the order in which they began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await (self._app if scope["type"] == "lifespan" else _refuse_socket)(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        answered = False

        async def sending(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            await self._serve(scope, receive, sending)
        except GoneError:
            status = 499
        except Problem as problem:
            await response(problem)(scope, receive, sending)
        except Exception:
            log.exception("a request failed: %s %s", scope["method"], _route(scope))
            if not answered:
                failure = Problem(500, "The server failed", "this is a bug; its log says more")
                await response(failure)(scope, receive, sending)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Never the decoded path: "/%761/block%0A" would be no write to the guard, and one to the router.
        scope = {**scope, "path": (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")}
        if _WRITES.fullmatch(f"{scope['method']} {scope['path']}"):
            check_token(scope, self._settings)
        body = await self._body(scope, receive)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:  # what follows the body is only ever the client's going
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        if self._running >= self._settings.max_requests:
            raise Problem(503, "Too many requests at once", "try again in a moment", {"Retry-After": "1"})
        self._running += 1
        at_work = True

        def done() -> None:
            nonlocal at_work
            self._running -= at_work
            at_work = False

        async def answering(message: Message) -> None:
            done()  # who takes the answer slowly does not count
            await send(message)

        try:
            await self._app(scope, replay, answering)
        finally:
            done()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        upload = (scope["method"], scope["path"]) == _UPLOAD
        limit = self._settings.max_upload_bytes if upload else self._settings.max_json_bytes
        told = _header(scope, b"content-length")
        if told.isdigit() and int(told[:20]) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._settings.body_seconds) as clock:
                self._wait_for(clock)
                try:
                    return await _read(receive, limit)
                finally:
                    self._arriving.pop(clock, None)
        except TimeoutError:
            problem = Problem(408, "The request did not arrive in time", "", {"Connection": "close"})
            raise problem from None

    def _wait_for(self, clock: asyncio.Timeout) -> None:
        """One more body is arriving; where too many are, the time of the slowest of them is up."""
        self._arriving[clock] = None
        if len(self._arriving) <= self._settings.max_requests:
            return
        slowest = next(iter(self._arriving))
        del self._arriving[slowest]
        if not slowest.expired():
            slowest.reschedule(asyncio.get_running_loop().time())

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
        self._metrics.count("firstlight_requests_total", method=method, route=route, status=str(status))
        self._metrics.observe("firstlight_request_seconds", seconds, route=route)


_KNOWN = (
    (re.compile(r"/v1/items/[^/]+/cover"), "/v1/items/{id}/cover"),
    (re.compile(r"/v1/(items|users)/[^/]+"), "/v1/{kind}/{id}"),
    (re.compile(r"/page/.*"), "/page"),
    (
        re.compile(
            r"/|/metrics|/version|/openapi\.json|/health/(live|ready)"
            r"|/v1/(recommend|similar)(/batch)?|/v1/(users|items|map|block|boost|reload|rollback)"
        ),
        None,
    ),
)


def _route(scope: Scope) -> str:
    """A path without what clients may choose: the number of metrics stays bounded."""
    raw = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    for pattern, name in _KNOWN:
        if found := pattern.fullmatch(raw):
            if name == "/v1/{kind}/{id}":
                return f"/v1/{found[1]}/{{id}}"
            return name or raw
    return "other"


def check_token(scope: Scope, settings: Settings) -> None:
    """Let nobody through without the token.

    Raises:
        Problem: It is missing or another one, or there is none to know.
    """
    token = settings.token
    if token is None:
        raise Problem(
            403,
            "Writing is off",
            "this server was started without a token, so nobody may change anything",
        )
    wanted = b"Bearer " + token.get_secret_value().encode()
    if not hmac.compare_digest(_header(scope, b"authorization"), wanted):
        raise Problem(
            401,
            "A token is needed",
            "writing needs the token that the server was started with (Authorization: Bearer …)",
            {"WWW-Authenticate": "Bearer"},
        )


async def _read(receive: Receive, limit: int) -> bytes:
    """A whole body."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _too_large(limit: int) -> Problem:
    # Whatever else is on its way is not read: the connection ends here.
    return Problem(413, "The request is too large", f"the limit is {limit} bytes", {"Connection": "close"})


async def _refuse_socket(_: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1000})
