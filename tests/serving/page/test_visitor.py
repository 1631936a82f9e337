"""Somebody whom training never saw: items are picked, and their list appears."""

from __future__ import annotations

import json

from serving.page.fake_api import FakeApi

WALL = "document.querySelectorAll('.person .wall .tile').length"
SHOWN = "[...document.querySelectorAll('.person .wall .tile')].map(one => one.dataset.item)"
PICKED = "[...document.querySelectorAll('.person .strip .tile')].map(one => one.dataset.item)"
FOUND = "document.querySelectorAll('#found-items button[data-item]').length"


def wall_of(page, api: FakeApi, *items: str) -> None:
    expected = [item["id"] for item in api.recommend(history=list(items), k=24)["items"]]
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({json.dumps(expected)})")
    assert page.js(PICKED) == list(items)


def test_pick_items_and_see_a_list(visit, api: FakeApi):
    page = visit("/visitor")
    page.until(f"{FOUND} === 30")
    assert "Nothing picked yet" in page.text(".person")
    assert page.js("document.querySelector('nav [aria-current]').textContent") == "Visitor"
    page.click("#which")
    title = api.titles[api.ids[7]]
    page.type(title.upper())
    page.until(f"{FOUND} === 1")
    page.until("document.querySelector('#live').textContent === '1 item found'")
    page.click("#found-items button")
    wall_of(page, api, api.ids[7])
    assert page.js("document.querySelector('#found-items button').ariaPressed") == "true"
    assert page.text(".person h2") == "Picked for them"
    assert title in page.text(".person .wall .why")
    page.js(
        "const field = document.querySelector('#which'); field.value = ''; field.dispatchEvent(new Event('input'))"
    )
    page.until(f"{FOUND} === 30")
    page.click("#found-items li:nth-child(3) button")
    wall_of(page, api, api.ids[7], api.ids[2])
    assert page.text(".facts") == "2 items"

    page.reload()
    wall_of(page, api, api.ids[7], api.ids[2])
    page.js("location.hash = '#/map'")
    page.until("document.querySelector('.stage canvas')")
    page.js("history.back()")
    wall_of(page, api, api.ids[7], api.ids[2])


def test_items_are_taken_out_again(visit, api: FakeApi):
    first, second, third = api.ids[:3]
    page = visit(f"/visitor?item={first}&item={second}&item={third}")
    wall_of(page, api, first, second, third)
    page.click(".strip li:nth-child(2) button")
    wall_of(page, api, first, third)
    assert page.js("document.activeElement.dataset.item") == third  # where the next one stands now
    page.until(f"{FOUND}")
    pressed = (
        "[...document.querySelectorAll('#found-items [aria-pressed=true]')].map(one => one.dataset.item)"
    )
    assert page.js(pressed) == [first, third]
    page.click("#found-items [aria-pressed=true]")
    wall_of(page, api, third)
    page.click(".person .quiet")
    page.until("document.querySelector('.person .state')")
    assert page.js("location.hash") == "#/visitor"
    assert page.count("#found-items [aria-pressed=true]") == 0


def test_with_the_keyboard_alone(visit, api: FakeApi):
    page = visit("/visitor")
    page.until(FOUND)
    page.js("document.querySelector('#which').focus()")
    page.key("ArrowDown", times=2)
    page.key("Enter")
    wall_of(page, api, api.ids[1])
    assert page.js("document.activeElement.dataset.item") == api.ids[1]  # the list keeps the focus
    page.key("ArrowDown")
    page.key("Space")
    wall_of(page, api, api.ids[1], api.ids[2])
    page.js("document.querySelector('.strip button').focus()")
    assert page.js("document.activeElement.ariaLabel") == f"Take out {api.titles[api.ids[1]]}"
    page.key("Enter")
    wall_of(page, api, api.ids[2])
    page.key("Enter")
    page.until("document.querySelector('.person .state')")
    assert page.js("document.activeElement.id") == "which"


def test_new_only_and_the_reason_in_what_was_picked(visit, api: FakeApi):
    picked = api.ids[:2]
    page = visit(f"/visitor?item={picked[0]}&item={picked[1]}")
    wall_of(page, api, *picked)
    page.click(".person .wall li:nth-child(2) .why")
    why = api.recommend(history=picked)["items"][1]["why"]["item"]
    assert page.js("[...document.querySelectorAll('.strip .lit')].map(one => one.dataset.item)") == [why]
    page.click(".controls button:last-child")
    new = [item["id"] for item in api.recommend(history=picked, only_new=True, k=24)["items"]]
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({json.dumps(new)})")


def test_an_item_leads_to_a_visitor_who_watched_it(visit, api: FakeApi):
    page = visit("/people/u07")
    page.until(WALL)
    item = page.js(SHOWN)[0]
    page.click(".person .wall .tile")
    page.until("document.querySelector('#item').open")
    page.js(
        "[...document.querySelectorAll('#item a')].find(one => one.textContent === 'Recommend from it').click()"
    )
    wall_of(page, api, item)
    assert not page.js("document.querySelector('#item').open")
    assert page.js("document.title") == "Visitor · firstlight"


def test_picked_items_that_are_taken_out_of_the_catalogue_are_named(visit, api: FakeApi):
    first, second = api.ids[:2]
    page = visit(f"/visitor?item={first}&item={second}")
    wall_of(page, api, first, second)
    assert "Not in the catalogue" not in page.text(".person")
    del api.vectors[first]
    page.click(".controls button:last-child")
    page.until("document.querySelector('.person .told')")
    assert page.text(".person .told") == f"Not in the catalogue: {first}"


def test_what_cannot_be_found(visit, api: FakeApi):
    page = visit(f"/visitor?item=none&item={api.ids[4]}")
    wall_of(page, api, api.ids[4])
    assert page.text(".facts") == "1 item; cannot be found: none"
    page = visit("/visitor?item=none")
    page.until("document.querySelector('.person .state')")
    assert page.text(".facts") == "In no log, never trained on; cannot be found: none"
    page.click("#which")
    page.type("zz<b>")
    page.until("document.querySelector('#found-items .state')")
    assert "Nothing is called “zz<b>”" in page.text("#found-items")
    api.fail["/v1/items"] = (503, {"title": "Busy", "detail": "Too many requests wait."})
    page.type("y")
    page.until("document.querySelector('#found-items [role=alert]')")
    api.fail.clear()
    page.click("#found-items [role=alert] button")
    page.until("document.querySelector('#found-items .state')")
