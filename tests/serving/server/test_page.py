"""The page in a real browser, on the real server: pick, add, reload, take out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from browser import Page
from serving.server.running import TOKEN, Running, picture, server

WALL = "document.querySelectorAll('.person .wall .tile').length"
SHOWN = "[...document.querySelectorAll('.person .wall .tile')].map(one => one.dataset.item)"


def test_what_is_shown_is_what_the_api_says(page: Page, live: Running):
    page.open(live.address)
    page.until("document.querySelectorAll('#found a').length === 50")
    page.click("#who")
    page.type("u07")
    page.until("document.querySelectorAll('#found a').length === 1")
    page.click("#found a")
    page.until(WALL)
    answer = live.post("/v1/recommend", {"user": "u07", "k": 24}).json()["items"]
    assert page.js(SHOWN) == [item["id"] for item in answer]
    assert page.js("document.querySelectorAll('.wall .tile .new').length") == sum(i["new"] for i in answer)
    page.until("[...document.querySelectorAll('.wall .tile img')].slice(0, 6).every(one => one.naturalWidth)")
    page.click(".person .wall .tile")
    page.until("document.querySelectorAll('#item .wall .tile').length === 10")
    page.js("location.hash = '#/map'")
    page.until("document.querySelectorAll('.legend li').length > 1")
    assert page.text(".map-head p").startswith("60 items")
    page.js("location.hash = '#/people/nobody'")
    page.until("document.querySelector('.person [role=alert]')")
    assert all(url.startswith(live.address) for url in page.urls)


def test_a_visitor_is_shown_what_the_api_says(page: Page, grouped: dict[str, Path], tmp_path: Path):
    """Somebody in no log: items are picked, and the model's own rule answers, with view and hyperedge."""
    with server(Path(shutil.copytree(grouped["bundle"], tmp_path / "bundle"))) as running:
        page.open(f"{running.address}#/visitor")
        page.until("document.querySelectorAll('#found-items button').length === 30")
        page.click("#found-items li:nth-child(4) button")
        page.until(WALL)
        page.click("#found-items li:nth-child(9) button")
        picked = page.js("[...document.querySelectorAll('.strip .tile')].map(one => one.dataset.item)")
        assert len(picked) == 2
        answer = running.post("/v1/recommend", {"history": picked, "k": 24}).json()["items"]
        wanted = json.dumps([item["id"] for item in answer])
        page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({wanted})")
        told = page.js("[...document.querySelectorAll('.person .wall .why')].map(one => one.textContent)")
        grouped_by = 0
        for words, item in zip(told, answer, strict=True):
            why = item["why"]
            assert words.startswith(f"like {why['title']}")
            assert (f", by {why['view']}" in words) == bool(why["view"])
            names = [one["title"] for one in (why["hyperedge"] or {"items": []})["items"]]
            assert all(name in words for name in names)
            grouped_by += bool(names)
        assert grouped_by > 0
        page.reload()
        page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({wanted})")
        place = next(at for at, item in enumerate(answer) if item["why"]["hyperedge"])
        page.click(f".person .wall li:nth-child({place + 1}) .tile")
        page.until("document.querySelectorAll('#item .wall .tile').length")
        why = answer[place]["why"]
        assert f"most alike by {why['view']}" in page.text("#item .closeup")
        assert why["hyperedge"]["items"][0]["title"] in page.text("#item .group")


def test_a_new_cover_lands_and_stays(page: Page, copied: Path, tmp_path: Path):
    cover = tmp_path / "cover.png"
    cover.write_bytes(picture())
    with server(copied) as running:
        page.open(f"{running.address}#token=wrong")
        page.until("document.querySelector('#new-title')")
        page.choose_file("#new-cover", cover)
        page.until("!document.querySelector('.preview').hidden")
        page.click("#new-title")
        page.type("Tango <b>rehearsal</b>")
        page.click("button.primary")
        page.until("document.querySelector('.trouble [role=alert]')")
        assert page.js("document.activeElement.id") == "new-token"
        page.type(TOKEN)
        page.key("Enter")
        page.until("document.querySelectorAll('.audience .place').length")
        page.until("!document.querySelector('.audience .place').innerText.includes('…')")
        item = page.js("document.querySelector('.arrived .tile').dataset.item")
        user = page.text(".audience a")
        found = running.client.get("/v1/items", params={"query": item}).json()["items"]
        assert [(one["id"], one["title"], one["new"]) for one in found] == [
            (item, "Tango <b>rehearsal</b>", True)
        ]
        ranked = running.post("/v1/recommend", {"user": user, "k": 100}).json()["items"]
        place = [one["id"] for one in ranked].index(item) + 1
        assert page.text(".audience .place").startswith(str(place))
        running.kill()  # in the middle of everything
    with server(copied) as running:
        page.open(f"{running.address}#/people/{user}?item={item}")
        page.until(WALL)
        while place > 24 and not page.count(".wall .marked"):
            page.click(".more")
            page.wait(0.2)
        page.until("document.querySelector('.wall .marked img')?.naturalWidth")
        page.open(f"{running.address}#/map?item={item}")
        page.until("document.querySelector('.card')?.hidden === false")
        assert "Tango <b>rehearsal</b>" in page.text(".card")
