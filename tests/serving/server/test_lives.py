"""kill -9, SIGTERM, a lost encoder, another bundle: no accepted item is lost, no request dropped."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from firstlight.serving.bundle import Bundle
from serving.server.running import WRITER, picture, server


def test_sigkill_loses_no_accepted_item(copied):
    accepted: list[str] = []
    with server(copied) as running:

        def adding(name: str) -> None:
            with httpx.Client(base_url=running.address, timeout=60) as client:
                for at in range(1000):
                    body = {"id": f"{name}{at}", "title": "Soup bread"}
                    try:
                        done = client.post("/v1/items", json=body, headers=WRITER)
                    except httpx.TransportError:
                        return
                    if done.status_code == 201:
                        accepted.append(f"{name}{at}")

        first = running.post("/v1/items", {"id": "first", "title": "Soup"}, **WRITER)  # the encoder is up
        assert first.status_code == 201
        threads = [threading.Thread(target=adding, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(accepted) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        running.kill()
        for thread in threads:
            thread.join()
    assert len(accepted) >= 6
    bundle = Bundle.open(copied)
    assert all(bundle.snapshot.row(item) is not None for item in accepted)
    with server(copied) as running:
        user = "u05"
        served = running.post("/v1/recommend", {"user": user, "k": 1000}).json()["items"]
        wanted = bundle.recommend(user, 1000)
        assert [entry["id"] for entry in served] == [entry.item for entry in wanted]
        assert [e["score"] for e in served] == pytest.approx([e.score for e in wanted], rel=1e-5)
        assert set(accepted) <= {entry["id"] for entry in served}


def test_sigterm_finishes_what_was_begun(copied):
    with server(copied) as running:
        running.post("/v1/items", {"id": "first", "title": "Soup"}, **WRITER)
        done: list[int] = []

        def adding() -> None:
            files = {"cover": ("c.png", picture("PNG", (2000, 2000)))}
            answer = httpx.post(
                f"{running.address}v1/items", data={"id": "last"}, files=files, headers=WRITER, timeout=60
            )
            done.append(answer.status_code)

        thread = threading.Thread(target=adding)
        thread.start()
        deadline = time.monotonic() + 20
        while "firstlight_uploads_running 1" not in running.client.get("/metrics").text and not done:
            assert time.monotonic() < deadline
        running.client.close()
        running.process.send_signal(signal.SIGTERM)
        thread.join()
        assert running.process.wait(timeout=60) == 0
    assert done == [201]
    assert Bundle.open(copied).snapshot.row("last") is not None


def test_a_lost_encoder_is_replaced_and_readers_notice_nothing(copied):
    with server(copied) as running:
        assert running.post("/v1/items", {"id": "first", "title": "Soup"}, **WRITER).status_code == 201
        pid = running.process.pid
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        encoders = [one for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
        assert encoders
        for child in encoders:
            os.kill(child, signal.SIGKILL)
        assert running.post("/v1/recommend", {"user": "u00"}).status_code == 200
        statuses = [
            running.post("/v1/items", {"id": f"n{at}", "title": "Soup"}, **WRITER).status_code
            for at in range(3)
        ]
        assert statuses[-1] == 201
        assert set(statuses) <= {201, 503}


def test_another_bundle_takes_over_without_dropping_a_request(trained, copied, tmp_path):
    other = shutil.copytree(copied, tmp_path / "other")
    fresh = Bundle.open(other)
    fresh.remove_items(["v05"])
    fresh.compact()
    current = tmp_path / "current"
    current.symlink_to(copied)
    with server(current, "--set", "poll_seconds=0") as running:
        running.post("/v1/block", {"items": ["v07"]}, **WRITER)
        failures: list[object] = []
        stop = threading.Event()

        def asking() -> None:
            with httpx.Client(base_url=running.address, timeout=60) as client:
                while not stop.is_set():
                    answer = client.post("/v1/recommend", json={"user": "u00", "k": 60})
                    if answer.status_code != 200 or not answer.json()["items"]:
                        failures.append(answer.text)
                    time.sleep(0.02)

        threads = [threading.Thread(target=asking) for _ in range(2)]
        for thread in threads:
            thread.start()
        (tmp_path / "next").symlink_to(other)
        (tmp_path / "next").replace(current)
        assert running.client.get("/v1/items/v05").status_code == 200  # until it is asked to reload
        told = running.post("/v1/reload", None, **WRITER)
        assert told.status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert running.client.get("/v1/items/v05").status_code == 404
        assert running.client.get("/v1/items/v07").json()["blocked"]  # a block outlives the bundle
        assert running.post("/v1/items", {"id": "there", "title": "Soup"}, **WRITER).status_code == 201
        (other / "manifest.json").write_text("{")
        told = running.post("/v1/reload", None, **WRITER)
        assert told.status_code in (200, 409, 500)
        assert running.post("/v1/recommend", {"user": "u00"}).status_code == 200
    assert Bundle.open(copied).snapshot.row("there") is None
