"""What the page is made of: nothing that needs a build, another host, or markup made of data."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

PAGE = files("firstlight.serving") / "page"
NAMES = sorted(file.name for file in PAGE.iterdir() if file.is_file())


def text(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r'(?:href|src)="page/([\w.]+)"', text("index.html")))
    for script in (name for name in NAMES if name.endswith(".js")):
        named |= set(re.findall(r'from "\./([\w.]+)"', text(script)))
    assert named | {"index.html"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_other_host(name):
    hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text(name)))
    assert hosts <= {"http://www.w3.org"}  # the name of SVG


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_data_never_becomes_markup_or_code(name):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    )
    assert not re.search(forbidden, text(name))


def test_no_script_or_style_in_the_markup():
    html = text("index.html")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert not re.search(r"<script(?![^>]*\ssrc=)", html)
