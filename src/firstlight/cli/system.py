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
from firstlight.cli.output import Answer, draw_pairs, draw_table, say

if TYPE_CHECKING:
    from rich.console import Console

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
    command(app, "demo", interrupted="the demo starts anew next time")(demo)
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
    """Go the whole way on a generated world, in minutes."""
    from firstlight.cli.progress import TrainingProgress
    from firstlight.core.extras import installed
    from firstlight.data.formats import read_dataset
    from firstlight.pipeline.demo import run_demo
    from firstlight.training.run_folder import load_run

    with TrainingProgress() as progress:
        report = run_demo(out, emit=progress)
    pictures = []
    if installed("plot"):
        from firstlight.reports.runs import picture_covers, picture_runs

        runs = {label: load_run(path) for label, path in report.runs.items()}
        picture_runs(out / "overview.png", runs)
        picture_covers(out / "covers.png", list(runs.values())[-1], read_dataset(report.data))
        pictures = [out / "overview.png", out / "covers.png"]
    value = {
        "out": out,
        "results": report.rows,
        "comparison": report.comparison,
        "world": report.world,
        "data": report.data,
        "runs": report.runs,
        "recommendations": report.recommendations,
        "pictures": pictures,
        "seconds": round(report.seconds, 1),
    }
    return Answer(value, lambda console: _draw_demo(console, value))


def _draw_demo(target: Console, value: dict[str, Any]) -> None:
    rows = value["results"]
    target.print()
    draw_table(target, ["model", *list(rows[0])[1:]], [list(row.values()) for row in rows])
    target.print()
    places = {
        "the world": value["world"],
        "the split dataset": value["data"],
        "the runs": out_of(value["runs"]),
        "ten items for every user": value["recommendations"],
    }
    if value["pictures"]:
        places |= {"curves, groups, temperatures": value["pictures"][0], "covers": value["pictures"][1]}
    draw_pairs(target, places, title=f"Done in {value['seconds']:.0f} s. Where things are:")
    if not value["pictures"]:
        target.print("  for pictures: pip install 'firstlight[plot]', then run the demo again")
    runs = [str(path) for path in value["runs"].values()]
    # Run from a virtual environment that is not active, as `make demo` does, the bare name would not be found.
    program = "firstlight" if shutil.which("firstlight") else sys.argv[0]
    target.print()
    target.print("Try next:", style="bold")
    target.print(f"  {program} recommend {runs[-1]} --users u0007 -k 5")
    target.print(f"  {program} compare {' '.join(runs)}")


def out_of(runs: dict[str, Path]) -> str:
    """The folder that holds all runs."""
    return str(next(iter(runs.values())).parent)
