"""Reloads of real servers: uploads go along, through a kill -9 too, and what cannot be opened changes nothing."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import httpx
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient

from firstlight.cli.app import run as command
from firstlight.data.catalogue import Catalogue
from firstlight.serving.approximate import ApproximateIndex
from firstlight.serving.bundle import Bundle
from firstlight.serving.server.app import create_app
from firstlight.serving.server.settings import Settings
from serving.catalogues import vector
from serving.server.running import TOKEN, WRITER, Running, picture, server

TITLE = "Tango rehearsal with the dancer"


@pytest.fixture
def places(pristine: Path, grouped: dict[str, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two bundles, and a link to the first."""
    first = Path(shutil.copytree(pristine, tmp_path / "first"))
    second = Path(shutil.copytree(grouped["bundle"], tmp_path / "second"))
    current = tmp_path / "current"
    current.symlink_to(first)
    return first, second, current


def switch(current: Path, target: Path) -> None:
    following = current.with_name("next")
    following.symlink_to(target)
    following.replace(current)


def upload(running: Running, item: str, title: str = TITLE, cover: bytes | None = None) -> None:
    files = {"cover": ("x.png", cover)} if cover else None
    done = running.client.post("/v1/items", data={"id": item, "title": title}, files=files, headers=WRITER)
    assert done.status_code == 201, done.text


def as_new(bundle: Bundle, title: str, cover: bytes | None) -> torch.Tensor:
    """The vector that the bundle's own encoder makes of this."""
    columns = {"title": pl.Series([title]), "cover": pl.Series([cover], dtype=pl.Binary)}
    return bundle.encoder().encode(Catalogue(pl.DataFrame(columns)), None)[0]


def test_a_reload_takes_uploads_along(places, tmp_path):
    first, second, current = places
    (tmp_path / "table.csv").write_text("item,title\nby-hand,Algebra lecture with homework\n")
    with server(current, "--set", "poll_seconds=0.1") as running:
        upload(running, "shown", cover=picture())
        upload(running, "told", "Soup bread")
        assert command(["add-items", str(first), str(tmp_path / "table.csv")]) == 0  # by another process
        opened = Bundle.open(first)
        opened.add_items(["bare"], opened.item_vectors()[:1])
        running.client.delete("/v1/items/v05", headers=WRITER)
        running.post("/v1/block", {"items": ["v07"]}, **WRITER)
        switch(current, second)
        told = running.post("/v1/reload", None, **WRITER)
        assert told.status_code == 200, told.text
        assert told.json()["carried"] == 3
        assert told.json()["lost"] == [{"id": "bare", "reason": "its content was not kept"}]
        assert "item 'bare'" in running.log.read_text()
        about = running.client.get("/version").json()
        assert (about["hyperedges"], about["version"]) == (True, told.json()["version"])
        assert running.client.get("/v1/items/v05").status_code == 404
        assert running.client.get("/v1/items/v07").json()["blocked"]
        shown = running.client.get("/v1/items/shown").json()
        assert (shown["title"], shown["new"]) == (TITLE, True)
        assert running.client.get(shown["cover"]).headers["content-type"] == "image/jpeg"
        served = running.post("/v1/recommend", {"user": "u05", "k": 1000}).json()["items"]
        upload(running, "later")
    bundle = Bundle.open(second)
    for item, title, cover in (("shown", TITLE, picture()), ("told", "Soup bread", None)):
        assert torch.allclose(vector(bundle, item), as_new(bundle, title, cover), atol=1e-6)
    assert [entry["id"] for entry in served if entry["id"] != "later"] == [
        entry.item for entry in bundle.recommend("u05", 1000) if entry.item != "later"
    ]
    reason = next(entry["why"] for entry in served if entry["id"] == "shown")
    assert {"view", "hyperedge"} <= reason.keys()
    with server(current) as running:  # nothing is carried twice, and nothing is left to do
        assert not (second / "carry.json").exists()
        assert running.post("/v1/reload", None, **WRITER).json()["carried"] == 0


def test_sigkill_in_the_middle_of_a_reload_loses_nothing(places):
    _, second, current = places
    names = [f"n{at}" for at in range(12)]
    with server(current, "--set", "poll_seconds=0") as running:
        for name in names:
            upload(running, name, cover=picture(colour=(10 * len(name), 40, 40)))
        running.post("/v1/block", {"items": ["v07"]}, **WRITER)
        running.client.delete("/v1/items/v05", headers=WRITER)
        switch(current, second)

        def reloading() -> None:
            with pytest.raises(httpx.TransportError):
                httpx.post(f"{running.address}v1/reload", headers=WRITER, timeout=60)

        thread = threading.Thread(target=reloading)
        thread.start()
        deadline = time.monotonic() + 60
        while not (second / "carry.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        running.kill()
        thread.join()
    half = Bundle.open(second)
    assert not all(half.snapshot.row(name) is not None for name in names)  # it was in the middle
    with server(current, "--set", "poll_seconds=0") as running:
        listed = running.post("/v1/recommend", {"user": "u05", "k": 1000}).json()["items"]
        assert set(names) <= {entry["id"] for entry in listed}
        assert running.client.get("/v1/items/v05").status_code == 404
        assert running.client.get("/v1/items/v07").json()["blocked"]
        assert "12 items that were added" in running.log.read_text()
    assert not (second / "carry.json").exists()
    bundle = Bundle.open(second)
    assert torch.allclose(
        vector(bundle, "n3"), as_new(bundle, TITLE, picture(colour=(20, 40, 40))), atol=1e-6
    )


def test_uploads_go_on_during_a_reload(places):
    _, second, current = places
    with server(current, "--set", "poll_seconds=0") as running:
        for at in range(5):
            upload(running, f"before{at}")
        accepted: list[str] = []
        stop = threading.Event()

        def adding() -> None:
            with httpx.Client(base_url=running.address, timeout=60) as client:
                for at in range(1000):
                    if stop.is_set():
                        return
                    body = {"id": f"during{at}", "title": TITLE}
                    if client.post("/v1/items", json=body, headers=WRITER).status_code == 201:
                        accepted.append(f"during{at}")

        thread = threading.Thread(target=adding)
        thread.start()
        while len(accepted) < 2:
            time.sleep(0.01)
        switch(current, second)
        told = running.client.post("/v1/reload", headers=WRITER).json()
        so_far = len(accepted)
        deadline = time.monotonic() + 60
        while len(accepted) < so_far + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        thread.join()
        assert told["lost"] == []
        assert told["carried"] >= 7
        assert not (second / "carry.json").exists()
        listed = running.post("/v1/recommend", {"user": "u05", "k": 1000}).json()["items"]
        names = {entry["id"] for entry in listed}
        assert {*accepted, *(f"before{at}" for at in range(5))} <= names
        assert len(accepted) >= so_far + 2


def test_a_bundle_that_cannot_be_opened_changes_nothing(places):
    first, second, current = places
    opened = Bundle.open(first)
    opened.add_items(["n1"], opened.item_vectors()[:1])
    (second / "manifest.json").write_text("{")
    with TestClient(create_app(Bundle.open, current, Settings(token=TOKEN))) as client:
        switch(current, second)
        told = client.post("/v1/reload", headers=WRITER)
        assert told.status_code == 409
        assert told.json()["title"] == "The new bundle cannot be served"
        assert client.get("/v1/items/n1").status_code == 200


def test_an_old_bundle_that_was_deleted_is_left_and_told_of(places):
    first, second, current = places
    opened = Bundle.open(first)
    opened.add_items(["n1"], opened.item_vectors()[:1])
    with TestClient(create_app(Bundle.open, current, Settings(token=TOKEN, poll_seconds=0))) as client:
        switch(current, second)
        shutil.rmtree(first)
        told = client.post("/v1/reload", headers=WRITER).json()
        assert (told["carried"], [entry["id"] for entry in told["lost"]]) == (0, ["n1"])
        assert told["lost"][0]["reason"] == "its content cannot be read; see the server's log"
        assert client.get("/version").json()["hyperedges"]
    assert not (second / "carry.json").exists()


def test_a_bundle_that_another_one_was_put_in_place_of_is_told_of(places, caplog):
    """Its segments are gone, so nothing can be carried: that must be said."""
    first, second, current = places
    opened = Bundle.open(first)
    opened.add_items(["n1"], opened.item_vectors()[:1])
    with TestClient(create_app(Bundle.open, current, Settings(token=TOKEN, poll_seconds=0))) as client:
        assert client.get("/v1/items/n1").status_code == 200
        first.rename(first.with_name("away"))
        second.rename(first)
        told = client.post("/v1/reload", headers=WRITER).json()
        assert told["carried"] == 0
        assert [entry["id"] for entry in told["lost"]] == ["n1"]
        assert client.get("/v1/items/n1").status_code == 404
    assert "1 items that had been added are not in" in caplog.text


def until(reached, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.02)


def test_a_look_at_the_disk_that_fails_is_not_the_last_one(places, monkeypatch, caplog):
    first, _, current = places
    failures: list[OSError] = []
    look = Bundle.reload

    def reload(bundle: Bundle) -> bool:
        if failures and bundle is not opened:
            raise failures.pop()
        return look(bundle)

    opened = Bundle.open(first)
    monkeypatch.setattr(Bundle, "reload", reload)
    settings = Settings(token=TOKEN, poll_seconds=0.05)
    with TestClient(create_app(Bundle.open, current, settings)) as client:
        failures += [PermissionError(13, "not now"), OSError(5, "the disk is away")]
        until(lambda: not failures)
        opened.add_items(["n1"], opened.item_vectors()[:1])
        until(lambda: client.get("/v1/items/n1").status_code == 200)
    assert caplog.text.count("it is tried again") == 2
    assert "the disk is away" in caplog.text


def test_a_rollback_to_another_base_gets_its_index(places):
    pytest.importorskip("faiss")
    first, _, current = places
    opened = Bundle.open(first)
    opened.add_items(["n1"], opened.item_vectors()[:1])
    before = opened.version
    opened.compact()
    settings = Settings(token=TOKEN, poll_seconds=0, index="hnsw")
    app = create_app(Bundle.open, current, settings)
    with TestClient(app) as client:
        catalogue = app.state.firstlight.catalogue

        def indexed() -> bool:
            on = catalogue.on(catalogue.bundle.snapshot)
            return on.base is catalogue.bundle.snapshot.base and isinstance(on.index, ApproximateIndex)

        newest = catalogue.bundle.snapshot.base
        assert indexed()
        assert client.post("/v1/rollback", json={"version": before}, headers=WRITER).status_code == 200
        assert catalogue.bundle.snapshot.base is not newest
        until(indexed)
