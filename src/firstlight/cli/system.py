"""Commands about the installation and the generated world: ``doctor``, ``simulate``, ``demo``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command, settings, validated
from firstlight.cli.output import Answer, draw_pairs, draw_table, say, tell
from firstlight.core.outputs import output

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.pipeline.demo import DemoReport

#: Distributions whose versions matter when something goes wrong.
PACKAGES = (
    "torch",
    "numpy",
    "polars",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "typer",
    "rich",
    "Pillow",
    "PyYAML",
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "doctor")(doctor)
    command(app, "demo", interrupted="the same command goes on where it stopped")(demo)
    command(app, "simulate")(simulate)


def doctor() -> Answer:
    """Show versions, threads, devices and missing parts."""
    packages = _packages()
    found: dict[str, Any] = {
        "firstlight": _version("firstlight"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "threads": _threads(),
        "devices": [],
        "extras": _extras(),
        "problems": [f"{name} is not installed" for name, version in packages.items() if version is None],
    }
    try:
        found["threads"]["torch"], found["devices"] = _torch()
    except (ImportError, OSError) as error:
        found["problems"].append(f"torch cannot be imported: {error}")
    return Answer(
        found, lambda console: _draw_doctor(console, found), exit_code=1 if found["problems"] else 0
    )


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _threads() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": os.cpu_count(), "usable": usable, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def _torch() -> tuple[int, list[dict[str, Any]]]:
    """Threads that torch takes, and the devices that it sees."""
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "capability": _cpu_capability()}
    ]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": about.name,
                "capability": f"{about.major}.{about.minor}",
                "memory_gib": round(about.total_memory / 2**30, 1),
            }
        )
    return torch.get_num_threads(), devices


def _cpu_capability() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _extras() -> dict[str, dict[str, Any]]:
    from firstlight.core.extras import EXTRAS, installed

    return {
        name: {
            "installed": installed(name),
            "library": library,
            "for": purpose,
            "install": f"pip install 'firstlight[{name}]'",
        }
        for name, (library, purpose) in EXTRAS.items()
    }


def _draw_doctor(console: Console, found: dict[str, Any]) -> None:
    draw_pairs(
        console,
        {name: found[name] for name in ("firstlight", "python", "executable", "platform")}
        | {f"threads: {name}": value for name, value in found["threads"].items()},
        title="This installation",
    )
    console.print()
    draw_pairs(console, found["packages"], title="Libraries")
    console.print()
    draw_table(
        console,
        ["device", "name", "capability"],
        [[device["device"], device["name"], device["capability"]] for device in found["devices"]],
        title="Devices",
    )
    draw_table(
        console,
        ["extra", "installed", "for", "how to get it"],
        [
            [name, about["installed"], about["for"], "" if about["installed"] else about["install"]]
            for name, about in found["extras"].items()
        ],
        title="Optional parts",
    )
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="bold red")


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not hold anything.")],
    users: Annotated[int | None, typer.Option(help="Number of users.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of micro-videos.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal worlds.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of the world.")
    ] = None,
) -> Answer:
    """Write a generated micro-video world.

    It is an ordinary dataset of clicks, titles, covers and clip features, with the truth that it was drawn
    from beside it.
    """
    from firstlight.data.simulate import SimulationConfig, write_simulation
    from firstlight.data.simulate import simulate as simulate_world

    named = {"n_users": users, "n_items": items, "seed": seed}
    given = {name: number for name, number in named.items() if number is not None}
    config = validated(SimulationConfig, settings(changes or []) | given)
    say("drawing the world …")
    world = simulate_world(config)
    with output(out):
        write_simulation(world, out)
    dataset = world.dataset
    clicks = sum(part.n_pairs for part in dataset.parts.values())
    value = {
        "out": out,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "pairs": {name: part.n_pairs for name, part in dataset.parts.items()},
        "features": sorted(dataset.catalogue.features),
        "columns": dataset.catalogue.items.columns,
        "content_hash": dataset.content_hash,
    }
    return Answer(
        value,
        lambda console: console.print(
            f"{out}: {dataset.n_users:,} users, {dataset.n_items:,} items, {clicks:,} clicks"
        ),
    )


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")] = Path("demo-out"),
) -> Answer:
    """Go the whole way on a generated world, to items that nobody has clicked, in minutes.

    This is the shipped pipeline demo (firstlight pipeline demo --dry-run shows its steps), and pictures of what it
    found. What is there already is not made again.
    """
    from firstlight.cli.pipeline import execute
    from firstlight.core.extras import installed
    from firstlight.pipeline.demo import run_demo

    # Without matplotlib there is neither a report nor a picture.
    plots = installed("plot")
    report = run_demo(out, execute, changes=[] if plots else ["report=null"], emit=tell)
    pictures = _demo_pictures(report) if plots else {}
    value = {**report.to_dict(), "pictures": list(pictures.values())}
    return Answer(value, lambda console: _draw_demo(console, report, pictures))


def _demo_pictures(report: DemoReport) -> dict[str, Path]:
    """Draw them; what they show -> file."""
    from firstlight.data.formats import read_dataset
    from firstlight.reports.arrivals import arrival_covers, draw_found
    from firstlight.reports.runs import picture_covers, picture_runs
    from firstlight.serving.bundle import Bundle
    from firstlight.training.run_folder import load_run

    files = {name: report.out / f"{name}.png" for name in ("overview", "covers", "new-items")}
    runs = {label: load_run(path) for label, path in list(report.runs.items())[:-1]}
    picture_runs(files["overview"], runs)
    picture_covers(files["covers"], list(runs.values())[-1], read_dataset(report.known))
    rows = arrival_covers(Bundle.open(report.bundle), read_dataset(report.world))
    draw_found(files["new-items"], report.arrivals.to_dict(), rows)
    return files


def _draw_demo(target: Console, report: DemoReport, pictures: dict[str, Path]) -> None:
    from firstlight.cli.arrivals import draw_arrivals

    rows = report.rows
    target.print()
    draw_table(
        target,
        ["model", *list(rows[0])[1:]],
        [list(row.values()) for row in rows],
        title="Clicks on items that were there before, after the cut",
    )
    target.print()
    adding = report.adding
    target.print(f"{adding['items']:,} items joined the bundle in {adding['seconds']:.2f} s", style="bold")
    draw_arrivals(target, report.arrivals)
    target.print()
    places = {
        "the world": report.world,
        "the runs": report.out / "runs",
        "ten items for every user, new ones included": report.recommendations,
    }
    shown = {"new-items": "new items", "overview": "curves, groups, temperatures", "covers": "covers"}
    places |= {what: pictures[name] for name, what in shown.items() if name in pictures}
    draw_pairs(target, places, title=f"Done in {report.seconds:.0f} s. Where things are:")
    if not pictures:
        target.print("  for the report and pictures: pip install 'firstlight[plot]', then run the demo again")
    # Run from a virtual environment that is not active, as `make demo` does, the bare name would not be found.
    program = "firstlight" if shutil.which("firstlight") else sys.argv[0]
    target.print()
    target.print("Try next:", style="bold")
    target.print(f"  {program} recommend {report.bundle} --users u0007 -k 5")
    target.print(f"  {program} add-items {report.bundle} PICTURE.jpg --title 'words of your own'")
    target.print(f"  {program} pipeline demo --dry-run --out {report.out}")
    target.print()
    if report.page is not None:
        target.print(f"Read the report:                  {report.page.resolve().as_uri()}")
    target.print(f"Open the page with the new items: {program} serve {report.bundle}")
