"""Every command and every example of the README and the guide runs as it is printed.

``bash`` blocks are run line by line, ``python`` blocks as one module a page, both in one empty folder a page
that holds ``clicks.csv``, as a reader's would.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
FENCE = re.compile(r"^```(?P<language>[\w{}-]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)(?P<target>[^)#]+)")


class Snippet(NamedTuple):
    language: str
    code: str
    line: int


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(match["language"], match["code"], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


def runnable(page: Path) -> bool:
    return any(snippet.language in ("bash", "python") for snippet in snippets(page))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a table of clicks, as current directory."""
    from datetime import UTC, datetime

    import polars as pl

    from firstlight.data.simulate import SimulationConfig, simulate

    world = simulate(SimulationConfig(n_users=150, n_items=90, mean_clicks=15, cover_size=16)).dataset
    tables = [
        pl.DataFrame(
            {
                "user": world.user_ids.gather(part.users),
                "item": world.item_ids.gather(part.items),
                "time": [datetime.fromtimestamp(int(t), UTC).timestamp() for t in part.times],
            }
        )
        for part in world.parts.values()
    ]
    pl.concat(tables).with_columns(pl.col("time").cast(pl.Int64)).write_csv(tmp_path / "clicks.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str, place: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), place
        return
    assert words[0] == "firstlight", f"{place}: only firstlight and make are run from the guide"
    from firstlight.cli.app import run

    assert run(words[1:]) == 0, f"{place}: {line}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_page_runs_as_printed(page, folder):
    names: dict[str, Any] = {"__name__": page.stem}
    for snippet in snippets(page):
        place = f"{page.name}:{snippet.line}"
        if snippet.language == "bash":
            for line in snippet.code.replace("\\\n", " ").splitlines():
                if line.strip():
                    run_line(line, place)
        elif snippet.language == "python":
            padding = "\n" * snippet.line  # so that a traceback shows the line of the page
            exec(compile(padding + snippet.code, str(page), "exec"), names)


def test_the_pages_that_show_work_are_run():
    run = {page.relative_to(ROOT).as_posix() for page in PAGES if runnable(page)}
    assert run >= {"README.md", "docs/quickstart.md", "docs/your-data.md", "docs/extending.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"].strip()
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fields_named_in_the_guide_exist(page):
    """``--set model.dim=128`` and fields in tables are fields of the config."""
    from firstlight.training.config import build_config

    config = build_config(model="lightgcn").model_dump()
    text = page.read_text(encoding="utf-8")
    fields = re.findall(r"`((?:model|loss|temperature|negatives|training|evaluation)\.\w+)`", text)
    fields += re.findall(r"--set ((?:model|loss|temperature|negatives|training|evaluation)\.\w+)=", text)
    for field in fields:
        room, _, name = field.partition(".")
        assert name in config[room], f"{page.name} names {field}"


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
