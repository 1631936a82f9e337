"""Commands about datasets: ``data inspect``, ``data convert``, ``data split``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import Reading, command, one_of
from firstlight.cli.output import Answer, draw_pairs, draw_table

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.data.dataset import Dataset

Source = Annotated[Path, typer.Argument(metavar="PATH", help="A folder or file in any supported format.")]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not hold anything.")]

SPLITS = ("random", "time", "leave-last", "cold-items")


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Inspect, convert and split click logs."
    )
    command(group, "inspect", reads=True)(inspect)
    command(group, "convert", reads=True)(convert)
    command(group, "split", reads=True)(split)
    app.add_typer(group, name="data")


def inspect(path: Source, reading: Reading) -> Answer:
    """Count what is there and list what is wrong, with line numbers."""
    from firstlight.data.inspect import inspect_path

    found = inspect_path(path, reading.options()).to_dict()
    return Answer(found, lambda console: _draw_inspection(console, found))


def convert(path: Source, out: Target, reading: Reading) -> Answer:
    """Read any supported format and write a dataset folder."""
    from firstlight.data.folder import write_dataset

    dataset = reading.read(path)
    write_dataset(dataset, out)
    return _written(dataset, out)


def split(
    path: Source,
    out: Target,
    reading: Reading,
    by: Annotated[
        str, typer.Option(metavar="|".join(SPLITS), help="How to choose what is held out; see the guide.")
    ],
    seed: Annotated[int, typer.Option(help="Seed of the splits that draw at random.")] = 0,
    valid_share: Annotated[
        float | None, typer.Option(help="Share held out for choosing models. [default: 0.1]")
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share held out for final numbers. [default: 0.2]")
    ] = None,
) -> Answer:
    """Split a dataset into train, valid and test, and write it as a dataset folder."""
    one_of(by, SPLITS, "--by")
    from firstlight.data.folder import write_dataset
    from firstlight.data.split import SplitOptions, split_dataset

    shares = {
        name: share
        for name, share in (("valid_share", valid_share), ("test_share", test_share))
        if share is not None
    }
    options = SplitOptions(by=by, seed=seed, **shares)  # type: ignore[arg-type]  # checked by one_of
    dataset = split_dataset(reading.read(path), options)
    write_dataset(dataset, out)
    return _written(dataset, out)


def summary(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds, as JSON values."""
    known = dataset.split
    return {
        "name": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "pairs": {name: part.n_pairs for name, part in dataset.parts.items()},
        "split": None if known is None else {"name": known.name, "seed": known.seed, "hash": known.hash},
        "dropped": dict(dataset.dropped),
        "content_hash": dataset.content_hash,
    }


def _draw_inspection(target: Console, found: dict[str, Any]) -> None:
    pairs: dict[str, Any] = {
        "format": found["format"],
        "users": found["n_users"],
        "items": found["n_items"],
        **{f"pairs in {part}": count for part, count in found["parts"].items()},
        "density": f"{found['density']:.4%}",
        "time": _time_range(found["time_range"]),
        "values": None if found["value_range"] is None else "{:g} to {:g}".format(*found["value_range"]),
        "items with a cover": found["covers"],
        **{f"items with a {name}": count for name, count in found["texts"].items()},
    }
    draw_pairs(
        target, {name: value for name, value in pairs.items() if value is not None}, title=found["path"]
    )
    target.print()
    degrees = [[side, *found[f"{side}_degrees"].values()] for side in ("user", "item")]
    draw_table(target, ["training pairs per", *found["user_degrees"]], _whole(degrees))
    for feature in found["features"]:
        rows, dim = feature["shape"]
        target.print(
            f"  feature {feature['name']}: {rows:,} × {dim}, present for {feature['present']:,} items"
        )
    notes = {name: found[name] for name in _NOTES if found[name]}
    if notes:
        draw_pairs(target, {_NOTES[name]: count for name, count in notes.items()}, title="Worth knowing")
    if found["dropped"]:
        draw_pairs(target, found["dropped"], title="Left out")
    if not found["problem_totals"]:
        target.print("nothing is wrong")
        return
    draw_pairs(target, found["problem_totals"], title="What is wrong")
    for problem in found["problems"]:
        line = "" if problem["line"] is None else f", line {problem['line']}"
        target.print(f"  {problem['file']}{line}: {problem['problem']}")


_NOTES = {
    "duplicates": "repeated pairs (one is kept)",
    "pairs_in_train_and_later": "pairs both in training and in a later part",
    "users_without_train": "users without a training pair",
    "users_in_test_only": "of these, with test pairs",
    "cold_items": "items without a training pair",
    "items_in_test_only": "of these, with test pairs ",
    "test_pairs_of_cold_items": "test pairs on such items",
}


def _whole(rows: list[list[Any]]) -> list[list[Any]]:
    """Whole numbers without decimals, so that degrees read as counts."""
    return [[int(v) if isinstance(v, float) and v.is_integer() else v for v in row] for row in rows]


def _time_range(seconds: tuple[int, int] | None) -> str | None:
    if seconds is None:
        return None
    from datetime import UTC, datetime

    try:
        first, last = (
            datetime.fromtimestamp(moment, UTC).isoformat(" ", "seconds")[:19] for moment in seconds
        )
    except (OverflowError, ValueError, OSError):  # counters, or milliseconds: still worth showing
        return f"{seconds[0]} to {seconds[1]} (not seconds since 1970)"
    return f"{first} to {last} UTC"


def _written(dataset: Dataset, out: Path) -> Answer:
    value = {"out": str(out), **summary(dataset)}

    def draw(console: Console) -> None:
        parts = ", ".join(f"{name} {part.n_pairs:,}" for name, part in dataset.parts.items())
        console.print(f"{out}: {dataset.n_users:,} users, {dataset.n_items:,} items; pairs: {parts}")
        for reason, rows in dataset.dropped.items():
            console.print(f"  left out: {rows:,} × {reason}")

    return Answer(value, draw)
