"""A small stand-in for the API that the page talks to, for what a healthy server seldom does: fail, stall, be empty.

It keeps the contract of the endpoints that the page uses, over a generated world whose truth it may look at.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from firstlight.data.simulate import Simulation, SimulationConfig, simulate

SMALL = SimulationConfig(n_users=30, n_items=60, n_topics=5, mean_clicks=8, cover_size=32, seed=3)
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
#: As strict as it gets: the page must not need more.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)


@cache
def generated(config: SimulationConfig) -> Simulation:
    return simulate(config)


@dataclass
class FakeApi:
    """The state behind the endpoints. Tests set what should go wrong.

    Attributes:
        fail: Path prefix → status and problem (or another body) to answer with.
        delay: Path prefix → seconds to wait.
        posted: Fields of the last upload.
    """

    config: SimulationConfig = SMALL
    token: str = "secret"
    fail: dict[str, tuple[int, Any]] = field(default_factory=dict)
    delay: dict[str, float] = field(default_factory=dict)
    posted: dict[str, Any] = field(default_factory=dict)
    takes_new_items: bool = True
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = generated(self.config)
        table = world.dataset.catalogue.items
        self.users = world.dataset.user_ids.to_list()
        self.ids = world.dataset.item_ids.to_list()
        self.titles: dict[str, str | None] = dict(zip(self.ids, table["title"], strict=True))
        self.covers: dict[str, bytes] = dict(zip(self.ids, table["cover"], strict=True))
        self.seen = [world.dataset.train.row(user) for user in range(len(self.users))]
        self.new = dict(zip(self.ids, (table["role"] == "cold-test").to_list(), strict=True))
        self.vectors = dict(zip(self.ids, world.truth.item_vectors, strict=True))
        self.tastes, self.topic = (
            world.truth.user_vectors,
            dict(zip(self.ids, world.truth.item_topics.tolist(), strict=True)),
        )
        self.views = ("cover", "text", "clip")

    def shown(self, item: str) -> dict[str, Any]:
        cover = f"/v1/items/{item}/cover" if item in self.covers else None
        return {"id": item, "title": self.titles[item], "cover": cover, "new": self.new[item]}

    def ranked(self, vector: np.ndarray, leave: set[str], k: int) -> list[tuple[str, float]]:
        scores = {item: float(row @ vector) for item, row in self.vectors.items() if item not in leave}
        return sorted(scores.items(), key=lambda pair: -pair[1])[:k]

    def similar(self, item: str, k: int) -> list[dict[str, Any]]:
        found = self.ranked(self.vectors[item], {item}, k)
        return [{**self.shown(one), "score": score} for one, score in found]

    def recommend(
        self, user: str | None = None, k: int = 20, only_new: bool = False, history: list[str] | None = None
    ) -> dict[str, Any]:
        if user is None:
            seen = [item for item in history or [] if item in self.vectors]
            taste = sum((self.vectors[item] for item in seen), np.zeros_like(self.tastes[0]))
        else:
            row = self.users.index(user)
            seen, taste = [self.ids[i] for i in self.seen[row]], self.tastes[row]
        items = []
        for item, score in self.ranked(taste, set(seen), len(self.ids) + 9):
            if only_new and not self.new[item]:
                continue
            why = max(seen, key=lambda one: float(self.vectors[one] @ self.vectors[item]), default=None)
            items.append(
                {**self.shown(item), "score": score, "why": why and self.reason(item, why, len(items))}
            )
        unknown = [item for item in history or [] if item not in self.vectors]
        return {"version": 1, "user": user, "basis": "model", "unknown": unknown, "items": items[:k]}

    def reason(self, item: str, why: str, place: int) -> dict[str, Any]:
        """By turns: without a view, in a view, and in a view with a group."""
        view = (None, *self.views)[(place + 1) % (len(self.views) + 1)]
        group = None
        if view in self.views[:2]:
            told = [one for one in self.ids if self.topic[one] == self.topic[item] and one != item][:3]
            named = [{"id": one, "title": self.titles[one]} for one in told]
            group = {"number": 4, "weight": 0.61, "items": named}
        return {"item": why, "title": self.titles[why], "view": view, "hyperedge": group}

    def map(self) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        points = []
        for item, topic in self.topic.items():
            angle = 2 * np.pi * topic / self.config.n_topics
            x, y = np.array([np.cos(angle), np.sin(angle)]) * (3 + topic % 3) + rng.normal(0, 0.6, 2)
            new, title = self.new[item], self.titles[item]
            points.append({"id": item, "x": x, "y": y, "topic": topic, "new": new, "title": title})
        return {"version": 1, "items": points}

    def add(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.posted = fields
        item, like = fields["id"], self.ids[0]
        self.vectors[item], self.topic[item], self.new[item] = (
            self.vectors[like] * 1.01,
            self.topic[like],
            True,
        )
        self.titles[item] = fields.get("title")
        if "cover" in fields:
            self.covers[item] = fields["cover"]
        liking = sorted(zip(self.tastes @ self.vectors[item], self.users, strict=True), reverse=True)
        audience = [{"user": user, "score": float(score)} for score, user in liking[:20]]
        return {"id": item, "version": 2, "similar": self.similar(item, 12), "audience": audience}

    def get(self, path: str, query: dict[str, str]) -> Any:
        words = query.get("query", "").lower()
        if path == "/v1/users":
            found = [
                {"id": user, "clicks": len(seen)}
                for user, seen in zip(self.users, self.seen, strict=False)  # tests may leave no user
                if words in user.lower()
            ]
            return {"users": found[: int(query["limit"])]}
        if path.startswith("/v1/users/"):
            user = unquote(path.removeprefix("/v1/users/"))
            if user not in self.users:
                return None
            history = [self.shown(self.ids[i]) for i in self.seen[self.users.index(user)]]
            return {"id": user, "clicks": len(history), "history": history[: int(query["limit"])]}
        if path == "/v1/items":
            found = [item for item in self.ids if words in f"{item} {self.titles[item]}".lower()]
            return {"items": [self.shown(item) for item in found[: int(query["limit"])]]}
        if path.startswith("/v1/items/"):
            item = unquote(path.removeprefix("/v1/items/"))
            return {**self.shown(item), "texts": {}} if item in self.titles else None
        if path == "/version":
            return {"version": 1, "takes_new_items": self.takes_new_items}
        return self.map() if path == "/v1/map" else None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Browsers hang up when a page is left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any, kind: str = "application/json") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(raw)), "Content-Security-Policy": POLICY}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def problem(self, status: int, title: str, detail: str = "") -> None:
        body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        self.answer(status, body, "application/problem+json")

    def spoiled(self) -> bool:
        self.api.calls.append(f"{self.command} {self.path}")
        for prefix, seconds in list(self.api.delay.items()):
            if self.path.startswith(prefix):
                time.sleep(seconds)
        for prefix, (status, body) in list(self.api.fail.items()):
            if self.path.startswith(prefix):
                self.answer(status, body)
                return True
        return False

    def do_GET(self) -> None:
        if self.spoiled():
            return
        url = urlsplit(self.path)
        if url.path == "/" or url.path.startswith("/page/"):
            name = url.path.removeprefix("/page/").strip("/") or "index.html"
            file = files("firstlight.serving") / "page" / name
            if file.is_file():
                self.answer(200, file.read_bytes(), TYPES[name.rsplit(".")[-1]])
                return
        if url.path.endswith("/cover"):
            cover = self.api.covers.get(unquote(url.path.split("/")[3]))
            if cover:
                self.answer(200, cover, "image/jpeg")
                return
        else:
            found = self.api.get(url.path, {key: one[0] for key, one in parse_qs(url.query).items()})
            if found is not None:
                self.answer(200, found)
                return
        self.problem(404, "Not found", "There is nothing here.")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.spoiled():
            return
        url = urlsplit(self.path)
        if url.path == "/v1/items":
            if self.headers.get("Authorization") != f"Bearer {self.api.token}":
                self.problem(
                    401, "A token is needed", "Writing needs the token that the server was started with."
                )
                return
            fields = {"id": f"new-{len(self.api.calls)}"} | parts_of(self.headers, body)
            if fields["id"] in self.api.vectors and url.query != "replace=true":
                self.problem(409, "The item is there already")
                return
            self.answer(201, self.api.add(fields))
            return
        request = json.loads(body)
        if self.path == "/v1/similar":
            self.answer(200, {"version": 1, "items": self.api.similar(request["item"], request["k"])})
        elif self.path == "/v1/recommend/batch":
            self.answer(200, {"answers": [self.api.recommend(**one) for one in request["requests"]]})
        elif "history" in request or request["user"] in self.api.users:
            self.answer(200, self.api.recommend(**request))
        else:
            self.problem(404, "Unknown user", f"user {request['user']!r} is unknown")

    def do_DELETE(self) -> None:
        item = unquote(self.path.rsplit("/", 1)[1])
        for kept in (self.api.vectors, self.api.topic, self.api.new, self.api.titles):
            kept.pop(item, None)
        self.answer(200, {"version": 3})


def parts_of(headers: Message, body: bytes) -> dict[str, Any]:
    """Fields of a multipart form; files as bytes."""
    whole = BytesParser(policy=HTTP).parsebytes(
        f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body
    )
    fields = {}
    for part in whole.iter_parts():
        raw = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        fields[name] = raw if part.get_filename() else raw.decode()
    return fields


@contextmanager
def serving(api: FakeApi):
    """Serve on a free port of this machine; gives the address."""
    handler = type("Bound", (Handler,), {"api": api})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
