"""For everyone: keyboard only, screen readers, phones, little contrast, dark."""

from __future__ import annotations

from itertools import pairwise

import pytest

from browser import Page
from serving.page.fake_api import FakeApi

WALL = "document.querySelectorAll('.person .wall .tile').length"
READY = {
    "/people": "document.querySelectorAll('#found a').length",
    "/people/u07": WALL,
    "/visitor": "document.querySelectorAll('#found-items button').length",
    "/visitor?item=v03&item=v11": f"{WALL} && document.querySelectorAll('#found-items button').length",
    "/add": "document.querySelector('#new-title')",
    "/map": "document.querySelectorAll('.legend li').length > 1",
}
#: Visible text whose contrast with what lies behind it is below 4.5 (3 for large text), as WCAG counts it.
FAINT = """(() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const linear = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] > 200) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('.unseen, .skip')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgba(style.color).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) faint.push(`${walker.currentNode.data.trim()} ${ratio.toFixed(2)}`);
  }
  return faint;
})()"""


def test_keyboard_only(visit, api: FakeApi):
    page = visit()
    page.until("document.querySelectorAll('#found a').length")
    page.key("Tab")
    assert page.js("document.activeElement.textContent") == "Skip to content"
    page.key("Enter")
    assert page.js("document.activeElement.id") == "main"
    page.key("Tab")
    assert page.js("document.activeElement.id") == "who"
    page.type("u07")
    page.until("document.querySelectorAll('#found a').length === 1")
    page.key("ArrowDown")
    assert page.js("document.activeElement.textContent").startswith("u07")
    page.key("Enter")
    page.until(WALL)
    assert page.js("document.activeElement.localName") == "h1"  # what follows is the person
    page.key("Tab", times=len(api.seen[7]) + 3)  # the history, and the two choices
    assert page.js("document.activeElement.closest('.person .wall li') !== null")
    here = page.js("document.activeElement.dataset.item")
    page.key("Enter")
    page.until("document.querySelectorAll('#item .wall .tile').length")
    assert page.js("document.activeElement.id") == "item-title"
    for _ in range(14):  # all the way round: the focus does not leave the dialog
        page.key("Tab")
        assert page.js(
            "document.activeElement === document.body || document.activeElement.closest('#item') !== null"
        )
    page.key("Escape")
    page.until("!document.querySelector('#item').open")
    assert page.js("document.activeElement.dataset.item") == here


@pytest.mark.parametrize("where", READY)
def test_names_and_landmarks(visit, where):
    page = visit(where)
    page.until(READY[where])
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if node.get("ignored"):
            continue
        name = node.get("name", {}).get("value", "")
        roles.setdefault(node["role"]["value"], []).append(name)
        focusable = any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        if focusable and node["role"]["value"] not in ("RootWebArea", "main"):
            assert name, node
    assert len(roles["banner"]) == len(roles["main"]) == len(roles["navigation"]) == len(roles["status"]) == 1
    assert page.count("h1") == 1
    levels = page.js(
        "[...document.querySelectorAll('main :is(h1, h2, h3)')].map(one => Number(one.localName[1]))"
    )
    assert all(after - before <= 1 for before, after in pairwise(levels))
    doubled = "[...document.querySelectorAll('[id]')].map(one => one.id).filter((id, i, all) => all.indexOf(id) !== i)"
    assert page.js(doubled) == []


@pytest.mark.parametrize("where", READY)
def test_a_narrow_screen(visit, page: Page, where):
    page.screen(320, 640, phone=True)
    visit(where)
    page.until(READY[where])
    assert page.js("document.documentElement.scrollWidth") <= 320
    small = """[...document.querySelectorAll('button, a, input:not(.unseen), summary')]
      .filter(one => one.checkVisibility() && !one.matches('.skip'))
      .map(one => [one.innerText, one.getBoundingClientRect().width, one.getBoundingClientRect().height])
      .filter(([, width, height]) => Math.min(width, height) < 24)"""
    assert page.js(small) == []  # fingers find everything


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(visit, page: Page, dark):
    page.dark(dark)
    for where, ready in READY.items():
        visit(where)
        page.until(ready)
        assert (page.js("getComputedStyle(document.body).color") == "rgb(241, 238, 244)") == dark
        assert page.js(FAINT) == []


def test_the_switch_between_light_and_dark(visit, page: Page):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.dark(False)
    visit("/people/u07")
    light = page.js(ground)
    page.click("#theme")  # light
    assert page.js("document.querySelector('#theme').ariaLabel") == "Colours: light. Change"
    page.click("#theme")  # dark
    dark = page.js(ground)
    assert dark != light
    page.reload()
    assert page.js(ground) == dark
    page.click("#theme")  # as the system
    assert page.js(ground) == light


def test_nothing_comes_from_elsewhere_and_nothing_is_refused(visit, page: Page, address: str):
    for where, ready in READY.items():
        visit(where)
        page.until(ready)
    assert page.urls
    assert all(url.startswith(address) for url in page.urls)
    assert page.problems == []
