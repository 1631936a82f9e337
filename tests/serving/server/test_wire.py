"""What is sent below HTTP's good manners: odd spellings of paths, lies about lengths, clients that are slow."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from firstlight.serving.bundle import Bundle
from serving.server.running import LEAKS, TOKEN, WRITER, Running, server

BODY = b'{"items": ["v03"]}'


def answer_to(live: Running, sent: bytes, seconds: float = 20) -> bytes:
    """Everything that comes back until the server closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=seconds) as wire:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may hang up while we are still writing
            wire.sendall(sent)
        with suppress(ConnectionResetError):
            while part := wire.recv(1 << 16):
                found += part
    return found


def request(method: str, path: str, body: bytes = b"", *headers: str, close: bool = True) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(["Connection: close"] if close else []), *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fine(live: Running) -> bool:
    return live.post("/v1/recommend", {"user": "u00", "k": 1}).status_code == 200


SLOW = (
    "--set",
    "header_seconds=2",
    "--set",
    "body_seconds=2",
    "--set",
    "take_seconds=2",
    "--set",
    "max_requests=8",
)


@pytest.fixture(scope="module")
def strict(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without patience, and with few places."""
    import shutil

    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("strict") / "bundle"))
    with server(folder, *SLOW, "--set", "poll_seconds=0") as running:
        yield running


# Paths

_SPELLINGS = (
    "/v1/{}",
    "/%761/{}",
    "/%761/{}%0A",
    "/v1/{}%0A",
    "/%76%31%2F{}",
    "/%76%31%2F{}%0A",
    "/v1/{}/",
    "/v1//{}",
    "//v1/{}",
    "/./v1/{}",
    "/x/../v1/{}",
    "/x/%2e%2e/v1/{}",
    "/V1/{}",
    "/v1/{}%00",
    "/v1/{};x",
    "/v1/{}%20",
    "/v1/{}?token=" + TOKEN,
    "http://x/v1/{}",
    "http://x/%761/{}%0A",
    "/page/../v1/{}",
    "/page/%2e%2e/v1/{}%0A",
)


@pytest.mark.parametrize("spelling", _SPELLINGS)
def test_no_spelling_of_a_path_writes_without_the_token(live, spelling):
    """A trailing newline once passed the guard, which took the path for another one than the router did."""
    version = live.client.get("/version").json()["version"]
    for method, name in (
        ("POST", "block"),
        ("DELETE", "block"),
        ("POST", "items"),
        ("DELETE", "items/v03"),
        ("POST", "boost"),
        ("POST", "rollback"),
        ("POST", "reload"),
    ):
        body = {"boost": b'{"v03": 2}', "rollback": b'{"version": 1}', "items": b'{"title": "Soup"}'}
        path = spelling.format(name)
        for sent in (method, method.lower()):
            found = answer_to(live, request(sent, path, body.get(name, BODY)))
            assert found.split(b" ")[1] in (b"400", b"401", b"404", b"405"), (sent, path, found)
    assert live.client.get("/version").json()["version"] == version


def test_the_router_asks_for_the_token_by_itself(copied, monkeypatch):
    """Even if the guard took every path for a read."""
    import re

    from fastapi.testclient import TestClient

    from firstlight.serving.server import guards
    from firstlight.serving.server.app import create_app
    from firstlight.serving.server.settings import Settings

    monkeypatch.setattr(guards, "_WRITES", re.compile("nothing"))
    with TestClient(create_app(Bundle.open, copied, Settings(token=TOKEN))) as client:
        assert client.post("/v1/block", json={"items": ["v03"]}).status_code == 401
        assert client.post("/v1/items", json={"title": "Soup"}).status_code == 401
        assert client.post("/v1/block", json={"items": ["v03"]}, headers=WRITER).status_code == 200
    with TestClient(create_app(Bundle.open, copied, Settings())) as client:
        assert client.post("/v1/block", json={"items": ["v03"]}, headers=WRITER).status_code == 403


# Connections

_HELLO = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def _answered(wire: socket.socket) -> int:
    """The status of the answer to one request on a connection that stays."""
    wire.sendall(_HELLO)
    found = HTTPResponse(wire)
    found.begin()
    found.read()
    return found.status


def test_idle_connections_make_room_and_those_at_work_do_not(copied):
    few = ("--set", "max_connections=5", "--set", "body_seconds=5", "--set", "poll_seconds=0")
    with server(copied, *few) as running, ExitStack() as stack:

        def opened() -> socket.socket:
            address = ("127.0.0.1", running.port)
            return stack.enter_context(socket.create_connection(address, timeout=5))

        running.client.close()  # its own connection would count
        first, *others = [opened() for _ in range(5)]
        for wire in (*others, first):  # the first one was heard of last
            assert _answered(wire) == 200
        newcomer = opened()
        assert _answered(newcomer) == 200
        assert others[0].recv(1) == b"", "the one that has waited longest is closed"
        assert _answered(first) == 200

        kept = [first, newcomer, *others[1:]]
        for wire in kept:  # all at work: a body is on its way
            wire.sendall(_HEAD.encode() + b"Content-Length: 99\r\n\r\n{")
        time.sleep(0.5)
        refused = opened()
        found = b""
        while part := refused.recv(1 << 16):
            found += part
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"application/problem+json" in head
        assert json.loads(body)["title"] == "Too many connections"
        for wire in kept:
            assert wire.recv(1 << 16).startswith(b"HTTP/1.1 408"), "they were left alone"


def _is_open(wire: socket.socket) -> bool:
    wire.setblocking(False)
    try:
        return wire.recv(1) != b""
    except BlockingIOError:
        return True


def test_a_flood_of_idle_connections_is_let_go_and_keeps_nobody_out(copied):
    few = ("--set", "max_connections=20", "--set", "poll_seconds=0")
    with server(copied, *few) as running, ExitStack() as stack:

        def opened() -> socket.socket:
            address = ("127.0.0.1", running.port)
            return stack.enter_context(socket.create_connection(address, timeout=5))

        flood = [opened() for _ in range(200)]
        for _ in range(5):
            assert _answered(opened()) == 200
        assert sum(map(_is_open, flood)) <= 20


# Lies about lengths, and what is no HTTP

_HEAD = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
_CHUNKED = _HEAD + "Transfer-Encoding: chunked\r\n\r\n"
_ASK = json.dumps({"user": "u00", "k": 1})
LIES: dict[str, tuple[str, set[str]]] = {
    "less than told": (f"{_HEAD}Content-Length: 5000\r\n\r\n{_ASK}", {"408"}),
    "more than told": (f"{_HEAD}Content-Length: {len(_ASK)}\r\n\r\n{_ASK}{_ASK * 50}", {"", "200"}),
    "length no number": (f"{_HEAD}Content-Length: many\r\n\r\n{_ASK}", {"400"}),
    "length below zero": (f"{_HEAD}Content-Length: -1\r\n\r\n{_ASK}", {"400"}),
    "length with a sign": (f"{_HEAD}Content-Length: +{len(_ASK)}\r\n\r\n{_ASK}", {"400"}),
    "length beyond numbers": (f"{_HEAD}Content-Length: {'9' * 400}\r\n\r\n{_ASK}", {"400", "413"}),
    "two lengths": (f"{_HEAD}Content-Length: 3\r\nContent-Length: 4\r\n\r\n{_ASK}", {"400"}),
    "length and chunks": (
        f"{_HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        {"400", "422"},
    ),
    "unknown coding": (f"{_HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", {"400", "501"}),
    "chunk size no number": (f"{_CHUNKED}many\r\n{_ASK}\r\n0\r\n\r\n", {"400"}),
    "chunk size below zero": (f"{_CHUNKED}-5\r\n{_ASK}\r\n0\r\n\r\n", {"400"}),
    "chunk size beyond memory": (f"{_CHUNKED}ffffffffffffff\r\n{_ASK}", {"408"}),
    "chunk size beyond numbers": (f"{_CHUNKED}{'f' * 4000}\r\n{_ASK}", {"400"}),
    "chunk longer than told": (f"{_CHUNKED}3\r\n{_ASK}\r\n0\r\n\r\n", {"400"}),
    "chunks without an end": (f"{_CHUNKED}{len(_ASK):x}\r\n{_ASK}\r\n", {"408"}),
    "endless chunk extension": (f"{_CHUNKED}1;{'x' * 100_000}\r\n", {"", "400", "408"}),
    "endless trailer": (f"{_CHUNKED}0\r\nx: {'x' * 100_000}\r\n\r\n", {"", "400", "422"}),
    "endless first line": (f"GET /{'x' * 100_000} HTTP/1.1\r\n\r\n", {"", "400"}),
    "endless header": (f"GET / HTTP/1.1\r\nHost: x\r\nx: {'x' * 2_000_000}\r\n\r\n", {"", "400"}),
    "very many headers": ("GET / HTTP/1.1\r\nHost: x\r\n" + "x: y\r\n" * 300_000 + "\r\n", {"", "400"}),
    "no host": ("GET /health/live HTTP/1.1\r\n\r\n", {"400"}),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00", {"400"}),
    "nothing": ("\r\n\r\n\r\n", {"", "400"}),
    "NUL": ("GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", {"400"}),
    "a header in a header": ("GET /health/live HTTP/1.1\r\nHost: x\r\nx: a\rb\r\n\r\n", {"400"}),
    "an upgrade": (
        "GET /v1/users HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n",
        {"200"},
    ),
    "CONNECT": ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {"404", "405"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_end_the_connection_and_nothing_else(strict, lie):
    sent, statuses = LIES[lie]
    found = answer_to(strict, sent.encode("latin-1")).decode("latin-1")
    first = found.split(" ")[1] if found else ""
    assert first in statuses, found[:300]
    assert not [leak for leak in LEAKS if leak in found]
    if first.startswith("4"):
        assert "content-type: application/problem+json" in found.lower()
        assert "x-content-type-options: nosniff" in found.lower()
    assert fine(strict)


# Slow clients


@contextmanager
def dribble(port: int, n: int, begun: bytes, rest: bytes, every: float) -> Iterator[list[socket.socket]]:
    """``n`` connections that begin and then send one byte every so many seconds."""
    stop = threading.Event()
    with ExitStack() as stack:
        wires = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(n)]
        for wire in wires:
            wire.settimeout(30)
            wire.sendall(begun)

        def send() -> None:
            for at in range(len(rest)):
                for wire in wires:
                    with suppress(OSError):
                        wire.sendall(rest[at : at + 1])
                if stop.wait(every):
                    return

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield wires
        finally:
            stop.set()
            thread.join()


def ended(wire: socket.socket) -> bytes:
    """What the server said before it closed the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while part := wire.recv(1 << 16):
            found += part
    return found


@pytest.mark.parametrize("part", ["headers", "body", "chunks"])
def test_who_dribbles_is_let_go_and_takes_nobodys_place(strict, part):
    """Three times as many slow clients as there are places, and a quick one among them."""
    whole = request("POST", "/v1/recommend", b" " * 400)
    begun, rest = {
        "headers": (whole[:20], b"x: " + b"y" * 400),
        "body": (whole[:-400], whole[-400:]),
        "chunks": (_CHUNKED.encode(), b"1\r\n \r\n" * 100),
    }[part]
    with dribble(strict.port, 24, begun, rest, 0.05) as wires:
        started = time.monotonic()
        asked = 0
        while time.monotonic() - started < 1.5 or not asked:
            assert fine(strict)
            asked += 1
        answers = [ended(wire) for wire in wires]
        assert time.monotonic() - started < 20
    expected = b"" if part == "headers" else b"HTTP/1.1 408"
    assert {answer[:12] for answer in answers} == {expected}
    assert fine(strict)


def sockets(process: int) -> int:
    """Open sockets of a process."""
    found = 0
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")
def test_who_does_not_take_the_answer_is_cut_off(strict):
    """More clients than places ask for megabytes and read nothing: the answers are not kept for them."""
    before = sockets(strict.process.pid)
    ask = request("GET", "/openapi.json", close=False) * 300
    with ExitStack() as stack:
        wires = [stack.enter_context(socket.socket()) for _ in range(12)]
        for wire in wires:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", strict.port))
            wire.settimeout(0.2)
            with suppress(OSError):
                wire.sendall(ask)
        until(lambda: sockets(strict.process.pid) > before)
        assert fine(strict)
        until(lambda: sockets(strict.process.pid) <= before)
        assert fine(strict)


def test_who_takes_the_answer_slowly_gets_all_of_it(strict):
    """Slower than the server writes, faster than what it demands."""
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", strict.port))
        wire.settimeout(30)
        n = 100
        wire.sendall(request("GET", "/openapi.json", close=False) * n)
        found = 0
        tail = b""
        while found < n:
            part = wire.recv(8192)
            assert part, f"cut off after {found} answers"
            tail += part
            found += tail.count(b"HTTP/1.1 200")
            tail = tail[-11:]
            time.sleep(0.002)
