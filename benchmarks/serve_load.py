"""What a served catalogue stands: open loop (requests come when they come), writers beside, and a closed loop.

    python benchmarks/serve_load.py [--items 100000] [--rate 100] [--seconds 30]

A generated catalogue of 64-dimensional vectors with one feature view, served by ``firstlight serve`` in a process of
its own and asked over loopback. *Open loop*: a request every 1/rate seconds, whether the last one was answered or not;
its latency counts from when it was due, so that a server that stalls is not spared the requests it held up. Phases:
no writes, 10 feature uploads a second, and these with one cover a second. *Closed loop*: 1, 8 and 32 clients that ask
as soon as they are answered. In the end the server is killed (kill -9) while uploads run, started again, and asked
for every accepted item, and for lists that are compared with an offline computation.

Numbers are published with ``--publish``; everything is bounded in count and time.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from machine import publish, table

VIEW, DIM, CLICKS, K = 64, 64, 7, 20
TOKEN = "benchmark-token"
#: Milliseconds at the 99th percentile of the open loop.
LIMITS = {"no writes": 20.0, "10 feature uploads/s": 50.0}


def build(n_items: int, n_users: int, path: Path) -> None:
    """A bundle of a content model at its start: a trained one computes the same."""
    import numpy as np
    import polars as pl
    import torch

    from firstlight.data.catalogue import Catalogue, FeatureMatrix
    from firstlight.data.interactions import Interactions
    from firstlight.models.base import build_model
    from firstlight.serving.base import parts
    from firstlight.serving.bundle import Bundle
    from firstlight.serving.encoder import ContentEncoder
    from firstlight.training.config import build_config
    from firstlight.views.viewset import ViewSet

    rng = np.random.default_rng(0)
    pairs = CLICKS * n_items
    users, items = rng.integers(n_users, size=pairs), rng.integers(n_items, size=pairs)
    log = Interactions.from_pairs(users, items, n_users, n_items)
    values = rng.standard_normal((n_items, VIEW), np.float32)
    titles = pl.DataFrame({"title": [f"title {n}" for n in range(n_items)]})
    known = Catalogue(titles, {"sound": FeatureMatrix(values, np.ones(n_items, np.bool_), "generated")})
    some = min(n_items, 500)  # covers of a few items are enough to fit the statistics that uploads go through
    covers = [picture(n) for n in range(some)] + [None] * (n_items - some)
    known = Catalogue(known.items.with_columns(cover=pl.Series(covers, dtype=pl.Binary)), known.features)
    config = build_config(model="vbpr", overrides=[f"model.dim={DIM}", "views.use=[sound,cover]"])
    views = ViewSet.fit(config.views, known, log.item_degrees > 0)
    model = build_model(config.model, log, torch.Generator().manual_seed(0), views.transform(known))
    model.eval()
    vectors = model.vectors_for_scoring()
    assert vectors is not None
    ids = [pl.Series([f"{kind}{n}" for n in range(m)]) for kind, m in (("user", n_users), ("item", n_items))]
    encoder = ContentEncoder(model, views)  # type: ignore[arg-type]
    Bundle.create(path, parts(*ids, *vectors, log, titles), write_encoder=encoder.save)


def picture(seed: int, side: int = 320) -> bytes:
    """A cover as a JPEG."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    small.resize((side, side)).save(out, "JPEG")
    return out.getvalue()


class Server:
    """``firstlight serve`` on a free port."""

    def __init__(self, path: Path, words: list[str]) -> None:
        self.log = path.parent / f"serve-{time.monotonic_ns()}.log"
        environment = {**os.environ, "FIRSTLIGHT_TOKEN": TOKEN}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "firstlight", "serve", str(path), "--port", "0", *words],
                stdout=out,
                stderr=out,
                env=environment,
            )
        deadline = time.monotonic() + 300
        while not (found := re.search(r"listening at (\S+)/", self.log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(self.log.read_text())
            time.sleep(0.05)
        self.address = found[1]

    def memory_mb(self) -> float:
        """Resident size."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)


async def open_loop(
    ask: Callable[[int], Awaitable[int]], rate: float, seconds: float
) -> tuple[list[float], int]:
    """Milliseconds of each request since it was due, and how many failed."""
    started = time.perf_counter()
    taken: list[float] = []
    failed = 0

    async def one(at: int) -> None:
        nonlocal failed
        due = started + at / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        try:
            status = await ask(at)
        except Exception:
            status = 0
        if status not in (200, 201):
            failed += 1
        taken.append(1e3 * (time.perf_counter() - due))

    await asyncio.gather(*(one(at) for at in range(int(rate * seconds))))
    return taken, failed


async def closed_loop(
    ask: Callable[[int], Awaitable[int]], clients: int, seconds: float
) -> tuple[list[float], int]:
    """The same with clients that wait for their answers."""
    until = time.perf_counter() + seconds
    taken: list[float] = []
    failed = 0

    async def client(number: int) -> None:
        nonlocal failed
        at = number
        while time.perf_counter() < until:
            began = time.perf_counter()
            failed += await ask(at) != 200
            taken.append(1e3 * (time.perf_counter() - began))
            at += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    return taken, failed


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, taken: list[float], failed: int, seconds: float) -> list[object]:
    marks = [f"{percentile(taken, share):.1f}" for share in (0.5, 0.95, 0.99)]
    return [name, len(taken), failed, f"{len(taken) / seconds:.0f}", *marks, f"{max(taken):.1f}"]


async def phases(
    server: Server, options: argparse.Namespace
) -> tuple[list[list[object]], dict[str, float], list[str]]:
    """All phases: rows of the table, p99 by name, and the accepted items."""
    import httpx
    import numpy as np

    rng = np.random.default_rng(5)
    accepted: list[str] = []
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=128)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    cover = picture(999, 800)
    async with httpx.AsyncClient(base_url=server.address, timeout=120, limits=limits) as client:

        async def ask(at: int) -> int:
            user = (at * 7919) % options.users
            return (await client.post("/v1/recommend", json={"user": f"user{user}", "k": K})).status_code

        def feature(name: str) -> Callable[[int], Awaitable[int]]:
            async def add(at: int) -> int:
                values = rng.standard_normal(VIEW).round(4).tolist()
                body = {"id": f"{name}-f{at}", "title": "fresh", "features": {"sound": values}}
                done = await client.post("/v1/items", json=body, headers=headers)
                if done.status_code == 201:
                    accepted.append(body["id"])
                return done.status_code

            return add

        def covers(name: str) -> Callable[[int], Awaitable[int]]:
            async def add(at: int) -> int:
                data, files = {"id": f"{name}-c{at}"}, {"cover": ("c.jpg", cover, "image/jpeg")}
                done = await client.post("/v1/items", data=data, files=files, headers=headers)
                if done.status_code == 201:
                    accepted.append(data["id"])
                return done.status_code

            return add

        await feature("warm")(0)  # the encoder is up
        await open_loop(ask, options.rate, min(3.0, options.seconds))
        rows: list[list[object]] = []
        p99: dict[str, float] = {}
        plans: dict[str, list[tuple[Callable[[int], Awaitable[int]], float]]] = {
            "no writes": [],
            "10 feature uploads/s": [(feature("a"), 10.0)],
            "10 feature, 1 cover uploads/s": [(feature("b"), 10.0), (covers("b"), 1.0)],
        }
        for name, writers in plans.items():
            work = [open_loop(ask, options.rate, options.seconds)]
            work += [open_loop(add, rate, options.seconds) for add, rate in writers]
            (taken, failed), *written = await asyncio.gather(*work)
            rows.append(row(f"open, {name}", taken, failed, options.seconds))
            p99[name] = percentile(taken, 0.99)
            for kind, (times, lost) in zip(("feature upload", "cover upload"), written, strict=False):
                rows.append(row(f"  {kind}", times, lost, options.seconds))
        for clients in (1, 8, 32):
            taken, failed = await closed_loop(ask, clients, options.seconds / 3)
            rows.append(row(f"closed, {clients} clients", taken, failed, options.seconds / 3))

        # The end: uploads run, and the server is killed.
        async def killed() -> None:
            await asyncio.sleep(min(2.0, options.seconds / 3))
            server.process.send_signal(signal.SIGKILL)

        await asyncio.gather(open_loop(feature("last"), 20.0, min(3.0, options.seconds)), killed())
    server.process.wait()
    return rows, p99, accepted


def after_kill(path: Path, accepted: list[str], words: list[str], users: int) -> tuple[int, int]:
    """Accepted items that are missing, and lists that are not those of an offline computation."""
    import httpx

    from firstlight.serving.bundle import Bundle

    bundle = Bundle.open(path)
    missing = sum(bundle.snapshot.row(item) is None for item in accepted)
    wrong = 0
    server = Server(path, words)
    try:
        for user in range(0, users, max(1, users // 20)):
            body = {"user": f"user{user}", "k": K}
            served = httpx.post(f"{server.address}/v1/recommend", json=body, timeout=30).json()["items"]
            wanted = bundle.recommend(f"user{user}", K)
            close = all(abs(s["score"] - w.score) < 1e-4 for s, w in zip(served, wanted, strict=True))
            wrong += not close
        for item in accepted:
            missing += httpx.get(f"{server.address}/v1/items/{item}", timeout=30).status_code != 200
    finally:
        server.stop()
    return missing, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--index", default="auto")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    words = ["--index", options.index]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        path = Path(folder) / "bundle"
        build(options.items, options.users, path)
        server = Server(path, words)
        try:
            rows, p99, accepted = asyncio.run(phases(server, options))
        finally:
            server.stop()
        missing, wrong = after_kill(path, accepted, words, options.users)
        about = indexed(path)
    header = ["phase", "requests", "failed", "per s", "p50 ms", "p95 ms", "p99 ms", "max ms"]
    kept = all(p99[name] < limit for name, limit in LIMITS.items()) and not missing and not wrong
    note = (
        f"{options.items:,} items × {DIM}, {options.users:,} users, k = {K}, {options.rate:g} requests/s, {about}. "
        f"After kill -9 and a restart: {len(accepted)} accepted items, {missing} missing, {wrong} lists wrong. "
        f"Limits at p99: {', '.join(f'{name} {limit:g} ms' for name, limit in LIMITS.items())}."
    )
    title = "Serving: latency under load"
    if options.publish:
        publish("speed", "serve_load", title, header, rows, note)
    else:
        table(title, header, rows)
        print(f"  {note}")
    print("limits kept" if kept else "limits BROKEN")
    return 0 if kept else 1


def indexed(path: Path) -> str:
    """How lists were made, in words."""
    found: list[dict[str, Any]] = [
        json.loads(file.read_text()) for file in path.glob("base-*.index/index.json")
    ]
    return f"{found[0]['kind']}, recall@20 {found[0]['recall@20']:.4f}" if found else "exact"


if __name__ == "__main__":
    sys.exit(main())
