"""Commands about datasets: ``data inspect``, ``data convert``, ``data split``, ``data cut``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import Reading, command
from firstlight.cli.output import Answer, draw_pairs, draw_table, say
from firstlight.core.choices import one_of
from firstlight.core.errors import place
from firstlight.core.outputs import output

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.data.dataset import Dataset
    from firstlight.data.inspect import Inspection

Source = Annotated[Path, typer.Argument(metavar="PATH", help="A folder or file in any supported format.")]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not hold anything.")]

SPLITS = ("random", "time", "leave-last", "cold-items")


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Inspect, convert, split and cut click logs."
    )
    command(group, "inspect", reads=True)(inspect)
    command(group, "convert", reads=True)(convert)
    command(group, "split", reads=True)(split)
    command(group, "cut", reads=True)(cut)
    app.add_typer(group, name="data")


def inspect(path: Source, reading: Reading) -> Answer:
    """Count what is there and list what is wrong, with line numbers."""
    from firstlight.data.inspect import inspect_path

    found = inspect_path(path, reading.options())
    return Answer(found.to_dict(), lambda console: _draw_inspection(console, found))


def convert(path: Source, out: Target, reading: Reading) -> Answer:
    """Read any supported format and write a dataset folder."""
    from firstlight.data.folder import write_dataset

    dataset = reading.read(path)
    with output(out):
        write_dataset(dataset, out)
    return _written(dataset, out)


def split(
    path: Source,
    out: Target,
    reading: Reading,
    by: Annotated[
        str, typer.Option(metavar="|".join(SPLITS), help="How to choose what is held out; see the guide.")
    ],
    seed: Annotated[
        int | None, typer.Option(help="Seed of the splits that draw at random. [default: 0]")
    ] = None,
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
    from firstlight.training.notes import of_split

    told = {"seed": seed, "valid_share": valid_share, "test_share": test_share}
    given = {name: value for name, value in told.items() if value is not None}
    options = SplitOptions(by=by, **given)  # type: ignore[arg-type]  # checked by one_of
    whole = reading.read(path)
    dataset = split_dataset(whole, options)
    with output(out):
        write_dataset(dataset, out)
    for note in of_split(options, list(given), whole, dataset):
        say(note)
    return _written(dataset, out)


def cut(path: Source, out: Target, reading: Reading) -> Answer:
    """Part a dataset into what was known before the test part (OUT/known), and the items that came after (OUT/new).

    These are the items whose role is cold-test: those that a split by time or by cold items keeps for the test. Train
    on the one, add the other with add-items, and look with arrivals whether people find them.
    """
    from firstlight.data.cut import cut_dataset, write_cut

    known, new = cut_dataset(reading.read(path))
    with output(out):
        write_cut(known, new, out)
    value = {"out": out, "known": known.summary(), "new": new.summary()}
    said = f"{out}: {known.n_items:,} items known, {new.n_items:,} that come after"
    return Answer(value, lambda console: console.print(said))


def _draw_inspection(target: Console, found: Inspection) -> None:
    draw_pairs(target, found.facts, title=found.path)
    target.print()
    draw_table(target, found.table.columns, _whole([list(row) for row in found.table.rows()]))
    if found.notes:
        draw_pairs(target, found.notes, title="Worth knowing")
    if found.dropped:
        draw_pairs(target, found.dropped, title="Left out")
    if not found.problem_totals:
        target.print("nothing is wrong")
        return
    draw_pairs(target, found.problem_totals, title="What is wrong")
    for problem in found.problems:
        target.print(f"  {place(problem.file, problem.line)}: {problem.problem}")


def _whole(rows: list[list[Any]]) -> list[list[Any]]:
    """Whole numbers without decimals, so that degrees read as counts."""
    return [[int(v) if isinstance(v, float) and v.is_integer() else v for v in row] for row in rows]


def _written(dataset: Dataset, out: Path) -> Answer:
    value = {"out": str(out), **dataset.summary()}

    def draw(console: Console) -> None:
        parts = ", ".join(f"{name} {part.n_pairs:,}" for name, part in dataset.parts.items())
        console.print(f"{out}: {dataset.n_users:,} users, {dataset.n_items:,} items; pairs: {parts}")
        for reason, rows in dataset.dropped.items():
            console.print(f"  left out: {rows:,} × {reason}")
        for note in dataset.notes:
            console.print(f"  {note}")

    return Answer(value, draw)
