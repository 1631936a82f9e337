"""Shared fixtures: real data where it exists, small datasets everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# No test times anything: on a busy machine an example may take long, and that is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the tests goes into, or comes from, the cache in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRSTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Look up a folder of real data (``FIRSTLIGHT_DATA``, default ``../shared/data``), or skip."""
    base = Path(os.environ.get("FIRSTLIGHT_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = base / name
        if not folder.exists():
            pytest.skip(f"real data {name!r} is not here; set FIRSTLIGHT_DATA to the folder that holds it")
        return folder

    return find
