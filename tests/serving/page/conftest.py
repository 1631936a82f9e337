"""The page on the stand-in for the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from browser import Page
from serving.page.fake_api import FakeApi, serving


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def address(api: FakeApi) -> Iterator[str]:
    with serving(api) as url:
        yield url


@pytest.fixture
def visit(page: Page, address: str) -> Callable[[str], Page]:
    """Go to a view, by the part of its address after ``#``."""

    def go(where: str = "/people") -> Page:
        page.open(f"{address}#{where}")
        return page

    return go


@pytest.fixture
def cover_file(api: FakeApi, tmp_path: Path) -> Path:
    path = tmp_path / "cover.jpg"
    path.write_bytes(api.covers[api.ids[0]])
    return path
