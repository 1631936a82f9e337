"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command, names
from firstlight.cli.output import Answer, say
from firstlight.core.errors import InputError

if TYPE_CHECKING:
    from firstlight.data.dataset import Dataset
    from firstlight.reports.measures import Measured


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "report")(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN …", help="Finished runs; the others are compared with the first."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file.")] = Path("report.html"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Dataset with titles and covers; the first run's own if it is where it was."
        ),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(metavar="ID,ID,…", help="Users whose lists are shown; some by chance if not given."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What probe --out wrote: adds the encoder's depth.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists.")] = 20,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
) -> Answer:
    """Write one self-contained HTML page about runs, and its pictures as PNGs beside it."""
    from firstlight.core.extras import require

    require("plot")
    from firstlight.reports.report import write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {str(out)!r} does not end in .html", hint="for example --out report.html")
    entries = measured(runs, k)
    dataset, folder = _dataset(entries[0], data)
    made = write_report(
        out,
        entries,
        k=k,
        dataset=dataset,
        folder=folder,
        users=None if users is None else names(users),
        probe=_probe(probe),
        title=title,
    )
    return Answer(
        made, lambda console: console.print(f"{out.resolve().as_uri()} ({made['bytes'] / 1e6:.1f} MB)")
    )


def measured(paths: list[Path], k: int) -> list[Measured]:
    """The runs with their numbers; labels are folder names, or paths where two have the same."""
    from firstlight.reports.measures import Measured
    from firstlight.training.assess import assess_cold, run_result
    from firstlight.training.run_folder import load_run

    short = [path.resolve().name for path in paths]
    labels = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(labels)) < len(labels):
        raise InputError("the same run is given twice", path=paths[0])
    entries = []
    for label, path in zip(labels, paths, strict=True):
        run = load_run(path)
        result = run_result(run)
        say(f"ranking: {label}")
        found = assess_cold(run, ks=(k,))
        entries.append(Measured(label, run, found.report, found.oracle_share, result))
    return entries


def _dataset(entry: Measured, given: Path | None) -> tuple[Dataset | None, Path | None]:
    """Titles and covers: of the given place, or of where the run's data came from, if that still works."""
    from firstlight.core.files import read_json
    from firstlight.data.formats import read_dataset

    recorded = read_json(entry.run.path / "dataset.json")["path"]
    source = given or (Path(recorded) if recorded else None)
    if source is None or (given is None and not source.exists()):
        say("the run's dataset is not where it was: the report shows ids (name the dataset with --data)")
        return None, None
    try:
        dataset = read_dataset(source)
    except InputError as error:
        if given is not None:
            raise
        say(f"the report shows ids (name the dataset with --data): {error}")
        return None, None
    return dataset, source if source.is_dir() else source.parent


def _probe(folder: Path | None) -> dict[str, Any] | None:
    from firstlight.core.files import read_json

    if folder is None:
        return None
    path = folder / "probe.json" if folder.is_dir() else folder
    try:
        found: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"this is no probe ({error})", path=path, hint="give the --out folder of firstlight probe"
        ) from error
    if "knn" not in found.get("tasks", ()):
        raise InputError("this probe has no k-NN numbers", path=path, hint="run probe with --tasks knn")
    return found
