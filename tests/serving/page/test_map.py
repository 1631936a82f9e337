"""The catalogue from above, with the mouse and with the keyboard."""

from __future__ import annotations

import pytest

from browser import Page
from serving.page.fake_api import FakeApi

READY = "document.querySelectorAll('.legend li').length > 1"
CARD = "document.querySelector('.card')"
COVERS = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('/cover')).length"
#: How many pixels of the canvas are not its background.
INK = """(() => {
  const canvas = document.querySelector('.stage canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let n = 0;
  for (let i = 3; i < data.length; i += 4) n += data[i] > 60;
  return n;
})()"""


def settle(page: Page) -> None:
    page.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")


def test_legend_counts_and_filters(visit, page: Page, api: FakeApi):
    page.screen(1400, 900)
    visit("/map")
    page.until(READY)
    sizes = page.js("[...document.querySelectorAll('.legend .muted')].map(one => Number(one.textContent))")
    topics = list(api.topic.values())
    assert sizes[0] == sum(api.new.values())
    assert sizes[1:] == sorted((topics.count(topic) for topic in set(topics)), reverse=True)
    page.until(f"{COVERS} === 60")  # so few that their covers are drawn
    settle(page)
    everything = page.js(INK)
    assert everything > 500
    page.click(".legend li:nth-child(2) button")
    settle(page)
    assert 0 < page.js(INK) < 0.6 * everything
    assert page.js("document.activeElement.ariaPressed") == "true"
    page.key("Space")
    settle(page)
    assert page.js(INK) == pytest.approx(everything, rel=0.02)


def test_keys_go_from_item_to_item_and_open_it(visit):
    page = visit("/map")
    page.until(READY)
    page.js("document.querySelector('.stage-keys').focus()")
    page.key("ArrowRight")
    page.until(f"{CARD}?.hidden === false")
    first = page.text(".card .title")
    page.until("document.querySelector('#live').textContent")
    assert first in page.js("document.querySelector('#live').textContent")
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"):
        page.key(key)
    page.key("+", times=4)
    settle(page)
    assert not page.js(f"{CARD}.hidden")  # the item that the keys are at stays in sight
    here = page.text(".card .title")
    page.key("Enter")
    page.until("document.querySelector('#item').open")
    assert page.text("#item-title") == here
    page.key("Escape")
    page.until("!document.querySelector('#item').open")
    assert page.js("document.activeElement.className") == "stage-keys"


def test_mouse_points_drags_zooms_and_opens(visit):
    page = visit("/map")
    page.until(READY)
    page.click("label[for=map-find]")
    page.type("v07")
    page.until("document.querySelector('.map .found button')")
    page.click(".map .found button")
    page.until(f"{CARD}?.hidden === false")
    title = page.text(".card .title")
    middle = page.js(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(document.querySelector('.stage canvas').getBoundingClientRect())"
    )
    page.move_to(5, 5)
    page.move_to(*middle)  # the item that was looked for stands in the middle
    settle(page)
    assert page.text(".card .title") == title
    page.press_at(*middle)
    page.until("document.querySelector('#item').open")
    page.key("Escape")

    x, y = middle
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 60, y=y + 30, button="left", buttons=1)
    page.call(
        "Input.dispatchMouseEvent", type="mouseReleased", x=x + 60, y=y + 30, button="left", clickCount=1
    )
    assert not page.js("document.querySelector('#item').open")  # that was no press
    page.move_to(5, 5)
    page.move_to(x + 60, y + 30)  # the item came along
    settle(page)
    assert page.text(".card .title") == title
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x + 60, y=y + 30, deltaX=0, deltaY=-300)
    settle(page)
    assert page.text(".card .title") == title  # zoomed where the mouse is


def test_close_up_covers_take_the_place_of_points(visit, api: FakeApi):
    page = visit("/map?item=v07")
    page.until(f"{CARD}?.hidden === false")
    page.until(f"{COVERS} > 3")
    page.js("location.hash = '#/map?item=gone'")
    page.until("document.querySelector('#live').textContent === 'This item is not on the map.'")


def test_one_item_or_all_in_one_place(visit, api: FakeApi, monkeypatch):
    point = {"x": 3.0, "y": -1.0, "topic": 0, "new": True, "title": None}
    items = [{**point, "id": "v00"}, {**point, "id": "v01"}]
    monkeypatch.setattr(api, "map", lambda: {"version": 1, "items": items})
    page = visit("/map")
    page.until(READY)
    assert page.text(".map-head p") == "2 items, 2 of them new"
    assert "Topic 1" in page.text(".legend")
