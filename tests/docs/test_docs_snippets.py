"""Every command and every example of the README and the guide runs as it is printed.

``bash`` blocks are run line by line, ``python`` blocks as one module a page, both in one empty folder a page
that holds ``clicks.csv`` and ``new.csv``, as a reader's would.
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
    """A folder with a table of clicks and one of new items, as current directory."""
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
    (tmp_path / "new.csv").write_text("item,title\nclip-1,tango rehearsal\nclip-2,algebra lecture\n")
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
            exec(compile(padding + snippet.code, str(page), "exec", dont_inherit=True), names)


def test_the_pages_that_show_work_are_run():
    run = {page.relative_to(ROOT).as_posix() for page in PAGES if runnable(page)}
    pages = ("quickstart", "python", "your-data", "views", "cold-start", "extending", "cli")
    assert run >= {"README.md", *(f"docs/{page}.md" for page in pages)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"].strip()
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


ROOMS = "model|loss|temperature|negatives|training|evaluation|views"


def every_field() -> dict[str, Any]:
    """The config as nested mappings, with the fields of all models together under ``model``."""
    from firstlight.models import MODELS
    from firstlight.training.config import build_config

    fields = build_config().model_dump()
    for name in MODELS.names():
        fields["model"] |= MODELS.load(name).Config().model_dump()
    return fields


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fields_named_in_the_guide_exist(page):
    """``--set model.dim=128`` and fields in tables are fields of the config."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{ROOMS})(?:\.\w+)+)[`=]", text)
    named += re.findall(rf"--set '?((?:{ROOMS})(?:\.\w+)+)=", text)
    for field in named:
        held: Any = every_field()
        for name in field.split("."):
            assert name in held, f"{page.name} names {field}"
            held = held[name]


def test_every_model_and_command_is_in_the_guide():
    from typer.main import get_command

    from firstlight.cli.app import app
    from firstlight.models import MODELS

    models = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [name for name in MODELS.names() if f"| `{name}` |" not in models] == []
    commands = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = []
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        called = [name] if inner is None else [f"{name} {part}" for part in inner]
        missing += [call for call in called if f"firstlight {call}" not in commands]
    assert missing == []


def test_the_settings_of_mhcr_stand_as_they_are():
    """The table of the three settings names every field that differs, with its values."""
    from firstlight.models.mhcr import MHCRConfig

    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:g}" if isinstance(value, int | float) else str(value)

    settings = [MHCRConfig.model_validate({"setting": name}) for name in ("released", "paper", "best")]
    text = (ROOT / "docs" / "methods" / "mhcr.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `model\.(\w+)` \| ([^|]+ \| [^|]+ \| [^|]+) \|$", text, re.MULTILINE))
    wanted = {}
    for field in MHCRConfig.model_fields:
        values = [shown(getattr(config, field)) for config in settings]
        if field != "setting" and len(set(values)) > 1:
            wanted[field] = " | ".join(values)
    assert rows == wanted


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
