"""A real server in a process of its own, on a small trained catalogue."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-for-tests"
WRITER = {"Authorization": f"Bearer {TOKEN}"}


#: What an answer must never hold: paths of the machine, and traces.
LEAKS = ("Traceback", tempfile.gettempdir(), str(ROOT), "site-packages", "firstlight/", ".py", 'File "')


def checked(answer: httpx.Response, *statuses: int) -> httpx.Response:
    """An answer that is a problem, and says nothing of the machine."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert {"type", "title", "status", "detail"} <= set(body)
        assert body["status"] == answer.status_code
        assert not [leak for leak in LEAKS if leak in answer.text], answer.text
    return answer


class Running:
    """A server: its address, and its process."""

    def __init__(self, process: subprocess.Popen, address: str, log: Path) -> None:
        self.process, self.address, self.log = process, address, log
        self.client = httpx.Client(base_url=address, timeout=60)

    @property
    def port(self) -> int:
        return int(self.address.rstrip("/").rsplit(":", 1)[1])

    def post(self, path: str, json: object, **headers: str) -> httpx.Response:
        return self.client.post(path, json=json, headers=headers)

    def kill(self) -> None:
        """kill -9."""
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def server(path: Path, *words: object, token: str | None = TOKEN) -> Iterator[Running]:
    """``firstlight serve`` on a free port."""
    log = path.parent / f"serve-{time.monotonic_ns()}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("FIRSTLIGHT_TOKEN", None)
    if token is not None:
        environment["FIRSTLIGHT_TOKEN"] = token
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "firstlight", "serve", str(path), "--port", "0", *map(str, words)],
            stderr=out,
            stdout=out,
            env=environment,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening at (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        running = Running(process, found[1], log)
        yield running
        running.client.close()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), colour=(180, 40, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()
