"""Whatever is sent: an answer in problem JSON, nothing written without the token, no path, no trace, no crash."""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import time
import zlib
from contextlib import suppress

import httpx
import pytest

from serving.server.running import TOKEN, WRITER, Running, checked, picture, server

WRITES = [
    ("POST", "/v1/items"),
    ("DELETE", "/v1/items/v03"),
    ("POST", "/v1/block"),
    ("DELETE", "/v1/block"),
    ("POST", "/v1/boost"),
    ("POST", "/v1/reload"),
    ("POST", "/v1/rollback"),
]


def version(live: Running) -> int:
    return live.client.get("/version").json()["version"]


@pytest.mark.parametrize(
    "given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}]
)
def test_nothing_is_written_without_the_token(live, given):
    before = version(live)
    for method, path in WRITES:
        checked(live.client.request(method, path, json={"items": ["v03"]}, headers=given), 401)
    assert version(live) == before


def test_without_any_token_nobody_may_write(copied):
    from fastapi.testclient import TestClient

    from firstlight.serving.bundle import Bundle
    from firstlight.serving.server.app import create_app

    with TestClient(create_app(Bundle.open, copied)) as client:
        for method, path in WRITES:
            checked(client.request(method, path, json={}, headers=WRITER), 403)
            checked(client.request(method, path, headers={"Authorization": "Bearer"}), 403)
        assert client.post("/v1/recommend", json={"user": "u00"}).status_code == 200
    assert Bundle.open(copied).version == 1


def test_requests_that_are_not_valid(live):
    for body in (
        {},
        {"user": "u00", "history": []},
        {"user": ""},
        {"user": "u" * 600},
        {"user": "u00", "k": 0},
        {"user": "u00", "k": 10**9},
        {"user": "u00", "k": "many"},
        {"user": "u00", "unknown": 1},
        {"user": ["u00"]},
        {"history": ["v03"] * 20_000},
        [],
        None,
        "text",
        3,
    ):
        checked(live.post("/v1/recommend", body), 422)
    for raw in (b"{", b"\xff\xfe", b'{"user": "\\ud800"}', b"[" * 100_000, b'{"user": NaN}', b""):
        answer = live.client.post("/v1/recommend", content=raw, headers={"Content-Type": "application/json"})
        checked(answer, 400, 422)
    checked(live.client.get("/v1/users?limit=many"), 422)
    checked(live.client.get("/nowhere"), 404)
    checked(live.client.put("/v1/recommend"), 405)
    for body in ({"v03": 0}, {"v03": 1e9}, {"v03": "NaN"}, {"": 2}, []):
        checked(live.post("/v1/boost", body, **WRITER), 422)
    checked(live.post("/v1/block", {"items": []}, **WRITER), 422)


NAMES = ["../../etc/passwd", "..", "a/b", "a\\b", "/etc/passwd", "C:\\x", "%2e%2e", "a\nb", "a\x00b"]
NAMES += ["🎬", "ü", "\u202ex", " x"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_ids_are_any_text_and_never_a_path(live, name):
    from urllib.parse import quote

    made = live.post("/v1/items", {"id": name, "title": "Goal ball"}, **WRITER)
    assert checked(made, 201).json()["id"] == name
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    assert quote(name, safe="") in (encoded, quote(name, safe=""))
    assert live.client.get(f"/v1/items/{encoded}").json()["id"] == name
    checked(live.client.get(f"/v1/items/{encoded}/cover"), 404)
    assert live.post("/v1/similar", {"item": name}).status_code == 200
    assert checked(live.client.delete(f"/v1/items/{encoded}", headers=WRITER), 200)
    checked(live.client.get(f"/v1/items/{encoded}"), 404)


def test_ids_that_are_no_text_are_refused(live):
    for body in ({"id": "", "title": "x"}, {"id": "   ", "title": "x"}, {"id": "x" * 600, "title": "x"}):
        checked(live.post("/v1/items", body, **WRITER), 422)
    checked(live.client.get("/v1/items/%FF%FE"), 422)
    raw = b'{"id": "\\ud800", "title": "x"}'
    headers = {**WRITER, "Content-Type": "application/json"}
    checked(live.client.post("/v1/items", content=raw, headers=headers), 422)
    for name in ("clip", "cover", "row", "role", "item"):  # a path in them would be read
        checked(live.post("/v1/items", {"title": "x", name: "/etc/passwd"}, **WRITER), 422)
    raw = b'{"title": "x", "features": {"sound": [1e999]}}'
    checked(live.client.post("/v1/items", content=raw, headers=headers), 422)
    checked(live.post("/v1/items", {"id": "nothing-known"}, **WRITER), 422)
    checked(live.post("/v1/items", {"features": {"unknown": [1.0]}}, **WRITER), 422)


def test_files_of_the_server_cannot_be_asked_for(live):
    for path in (
        "/page/../bundle.py",
        "/page/%2e%2e/bundle.py",
        "/page/..%2f..%2fbundle.py",
        "/page//etc/passwd",
    ):
        with socket.create_connection(("127.0.0.1", live.port)) as wire:
            wire.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := wire.recv(1 << 16):
                answer += part
        assert answer.startswith(b"HTTP/1.1 4"), path
        assert b"import" not in answer


def bomb(side: int) -> bytes:
    """A PNG of ``side``² pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 4096, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def upload(
    live: Running, cover: bytes, kind: str = "application/octet-stream", **data: str
) -> httpx.Response:
    return live.client.post("/v1/items", data=data, files={"cover": ("c", cover, kind)}, headers=WRITER)


def test_pictures_that_are_none(live):
    before = version(live)
    good = picture("JPEG")
    checked(upload(live, bomb(60_000), title="a title does not excuse it"), 422)
    checked(upload(live, b"<svg onload='x'/>", "image/svg+xml", title="x"), 415)
    checked(upload(live, b"GIF89a", "image/gif", title="x"), 422)
    checked(upload(live, picture("PNG"), "image/jpeg", title="x"), 415)  # it lies
    checked(upload(live, good, "text/html", title="x"), 415)
    chance = random.Random(4)
    for _ in range(12):  # torn and spoiled, but seldom unusable: what is refused is refused cleanly
        spoiled = bytearray(good)
        for _ in range(30):
            spoiled[chance.randrange(4, len(spoiled))] = chance.randrange(256)
        checked(
            upload(live, bytes(spoiled[: chance.randrange(20, len(spoiled))]), id=f"spoiled-{before}"),
            201,
            409,
            422,
        )
    found = live.client.get(f"/v1/items/spoiled-{before}")
    if found.status_code == 200:
        live.client.delete(f"/v1/items/spoiled-{before}", headers=WRITER)
    checked(live.client.post("/v1/items", data={"title": "x"}, files={"other": b"x"}, headers=WRITER), 422)
    checked(live.client.post("/v1/items", content=b"x", headers=WRITER), 415)
    torn = {**WRITER, "Content-Type": "multipart/form-data; boundary=b"}
    for raw in (b"", b"--b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", b"\x00" * 500):
        checked(live.client.post("/v1/items", content=raw, headers=torn), 400, 422)
    many = {f"field{i}": "x" for i in range(100)}
    checked(live.client.post("/v1/items", data=many, files={"cover": good}, headers=WRITER), 400)
    assert live.client.get("/health/live").status_code == 200


def test_bodies_that_are_too_long(live):
    checked(live.client.post("/v1/recommend", content=b" " * (2 << 20)), 413)
    checked(live.client.post("/v1/items", content=b" " * (13 << 20), headers=WRITER), 413)

    def endless():
        for _ in range(64):
            yield b" " * (1 << 16)

    with suppress(httpx.WriteError, httpx.ReadError):  # it answers and hangs up while we are still writing
        checked(live.client.post("/v1/recommend", content=endless()), 413)
    told = f"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {'9' * 15}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as wire:
        wire.sendall(told.encode())
        assert wire.recv(100).startswith(b"HTTP/1.1 413")


def test_slow_clients_are_let_go_and_hold_nobody_up(copied):
    with server(copied, "--set", "header_seconds=1", "--set", "body_seconds=1") as running:
        begun = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        wires = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
        for at, wire in enumerate(wires):
            wire.settimeout(20)
            wire.sendall(begun if at % 2 else begun[:30])
        assert running.post("/v1/recommend", {"user": "u00"}).status_code == 200
        started = time.monotonic()
        answers = [wire.recv(4096) for wire in wires]
        assert time.monotonic() - started < 15
        assert [answer[:12] for answer in answers[1::2]] == [b"HTTP/1.1 408"] * 10
        assert answers[::2] == [b""] * 10  # without a whole request there is nobody to answer
        for wire in wires:
            wire.close()


def test_a_failure_inside_says_nothing_of_the_inside(copied, monkeypatch):
    from fastapi.testclient import TestClient

    from firstlight.serving.bundle import Bundle
    from firstlight.serving.server.app import create_app
    from firstlight.serving.server.catalogue import Catalogue

    def broken(*_):
        raise RuntimeError("secret of /tmp/inside")

    monkeypatch.setattr(Catalogue, "answer", broken)
    app = create_app(Bundle.open, copied)
    with TestClient(app) as client:
        answer = client.post("/v1/recommend", json={"user": "u00"})
        checked(answer, 500)
        assert "secret" not in answer.text


def test_too_many_at_once_are_told_so(copied):
    from fastapi.testclient import TestClient

    from firstlight.serving.bundle import Bundle
    from firstlight.serving.server.app import create_app
    from firstlight.serving.server.settings import Settings

    app = create_app(Bundle.open, copied, Settings(token=TOKEN))
    with TestClient(app) as client:
        app.state.firstlight._uploads = 16
        answer = client.post("/v1/items", json={"title": "x"}, headers=WRITER)
        checked(answer, 503)
        assert answer.headers["retry-after"] == "1"


def test_the_log_names_no_token(live):
    live.client.get("/v1/items", headers=WRITER)
    assert TOKEN not in live.log.read_text()
    assert json.dumps(TOKEN) not in io.StringIO(live.log.read_text()).read()
