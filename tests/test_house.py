"""The house rules that a machine can hold: who may import whom, and what starting up may cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import firstlight

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "firstlight"

#: A room imports only from floors below its own, and inside itself.
FLOORS = {
    "core": 0,
    "data": 1,
    "graphs": 1,
    "losses": 1,
    "vision": 2,
    "models": 2,
    "views": 3,
    "evaluation": 3,
    "training": 4,
    "serving": 4,
    "pipeline": 5,
    "reports": 5,
    "scale": 5,
    "cli": 6,
    "api": 7,
}
#: Loading any of these takes longer than answering --help may.
HEAVY = ("torch", "polars", "sklearn", "scipy", "numpy", "matplotlib", "PIL", "rich", "safetensors")


#: Names that the package itself offers; they are the facade's.
OFFERED = frozenset(firstlight.__all__) - {"__version__"}


class Import(NamedTuple):
    """One import of another firstlight module: where it stands, its line, the dotted path it names."""

    file: str
    line: int
    target: str


def firstlight_imports(file: Path, source: str, package: Path = PACKAGE) -> Iterator[Import]:
    """All imports of firstlight modules, also those inside functions and ``if TYPE_CHECKING``."""
    name = file.relative_to(package).as_posix()
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "firstlight":
                    yield Import(name, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["firstlight", *file.relative_to(package).parts[: -node.level]]
                base = ".".join([*parts, *base.split(".")]).rstrip(".")
            if base.split(".")[0] == "firstlight":
                for alias in node.names:
                    yield Import(name, node.lineno, f"{base}.{alias.name}")


def broken_rules(imports: Iterator[Import]) -> list[str]:
    """The imports that break a rule, in words."""
    found = []
    for file, line, target in imports:
        here, *_ = Path(file).parts
        parts = target.split(".")[1:]
        if parts and parts[0] in OFFERED:  # ``from firstlight import train`` is an import of the facade
            parts = ["api", *parts]
        if here not in FLOORS or not parts or parts[0] not in FLOORS:
            continue  # top-level modules (version, __main__) belong to no room
        there = parts[0]
        if there == here:
            continue
        if FLOORS[there] >= FLOORS[here]:
            found.append(
                f"{file}:{line}: {here} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})"
            )
        if any(part.startswith("_") and not part.startswith("__") for part in parts):
            found.append(f"{file}:{line}: {target} is private to {there}")
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_rooms_import_only_from_floors_below():
    found = [rule for file in modules() for rule in broken_rules(firstlight_imports(file, file.read_text()))]
    assert not found, "\n".join(found)


def test_every_room_is_known():
    rooms = {file.relative_to(PACKAGE).parts[0] for file in modules() if file.parent != PACKAGE}
    assert rooms <= FLOORS.keys()
    assert {"core", "data", "cli"} <= rooms


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("data/a.py", "from firstlight.core.errors import InputError", 0),
        ("data/a.py", "from firstlight.models.mf import MF", 1),
        ("data/a.py", "def f():\n    import firstlight.graphs.knn", 1),
        ("data/a.py", "from firstlight import training", 1),
        ("data/formats/a.py", "from .base import _x", 0),
        ("data/formats/a.py", "from ...models import mf", 1),
        ("models/a.py", "from firstlight.data.split import _pool", 1),
        ("models/a.py", "from firstlight.data._hidden import thing", 1),
        ("reports/a.py", "from firstlight.pipeline.demo import run_demo", 1),
        ("cli/a.py", "import firstlight\nfrom firstlight.reports.pictures import draw", 0),
        ("cli/a.py", "from firstlight.api.runs import train", 1),
        ("cli/a.py", "from firstlight import train", 1),
        ("api/a.py", "from firstlight.cli.options import validated", 0),
    ],
)
def test_the_rule_itself(file, source, broken):
    assert len(broken_rules(firstlight_imports(PACKAGE / file, source))) == broken


def test_data_room_never_names_torch():
    for file in sorted((PACKAGE / "data").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "torch" for name in names), f"{file}:{node.lineno}"


def loaded_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running ``code``."""
    listing = "import json, sys; print(json.dumps([n.split('.')[0] for n in sys.modules]), file=sys.stderr)"
    script = f"{code}\n{listing}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["data", "split", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments):
    loaded = loaded_after(f"from firstlight.cli.app import run\nassert run({arguments!r}) == 0")
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_program_help_does_not_load_pydantic():
    # The help of a single command does: newer versions of typer describe its options with it.
    assert "pydantic" not in loaded_after("from firstlight.cli.app import run\nassert run(['--help']) == 0")


def test_reading_data_does_not_load_torch():
    assert "torch" not in loaded_after("import firstlight.data.formats, firstlight.data.split")


def test_the_package_itself_loads_nothing():
    loaded = loaded_after("import firstlight\nassert 'train' in dir(firstlight)")
    assert loaded.isdisjoint((*HEAVY, "pydantic", "typer"))


def test_reading_through_the_package_does_not_load_torch():
    assert "torch" not in loaded_after(
        "import firstlight\nfirstlight.read, firstlight.split, firstlight.inspect"
    )


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == firstlight.__version__
    assert f"version: {firstlight.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {firstlight.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_that_the_code_asks_for_exist():
    from firstlight.core.extras import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() <= project["optional-dependencies"].keys()
