"""What a report is made from: finished runs, their recorded numbers, and the dataset with titles and covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.extras import require
from firstlight.core.files import read_json
from firstlight.core.outputs import check_file, output
from firstlight.data.dataset import Dataset
from firstlight.data.formats import ReadOptions, read_dataset
from firstlight.reports.arrivals import read_arrivals
from firstlight.reports.encoder import read_probe
from firstlight.reports.measures import Measured
from firstlight.reports.report import write_report
from firstlight.training.assess import run_result
from firstlight.training.recorded import cold_numbers
from firstlight.training.run_folder import Run, load_run


def report(
    runs: Sequence[Path],
    out: Path,
    *,
    data: Path | None = None,
    users: Sequence[str] | None = None,
    probe: Path | None = None,
    arrivals: Path | None = None,
    k: int = 20,
    title: str | None = None,
    emit: Emit = silent,
) -> dict[str, Any]:
    """Write a report about finished runs. Numbers that are recorded with a run are read, others are ranked now.

    Args:
        runs: Their folders; the others are compared with the first.
        out: The HTML file.
        data: Dataset with titles and covers; the first run's own if None and it is where it was.
        users: Raw ids of users whose lists are shown; some by chance if None.
        probe: What ``firstlight probe --out`` wrote.
        arrivals: What ``firstlight arrivals --json`` printed.
        k: Length of the lists.
        title: The report's title.
        emit: Receives messages.

    Returns:
        What :func:`firstlight.reports.report.write_report` gives.

    Raises:
        InputError: A run, the dataset or the probe cannot be read, or ``out`` is no HTML file.
        MissingExtraError: matplotlib is not installed.
    """
    require("plot")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {str(out)!r} does not end in .html", hint="for example --out report.html")
    check_file(out)
    depth: Mapping[str, Any] | None = None if probe is None else read_probe(probe)
    arrived = None if arrivals is None else read_arrivals(arrivals)
    entries = measured(runs, k, emit)
    dataset, folder = shown_data(entries[0].run, data, emit)
    with output(out):
        return write_report(
            out,
            entries,
            k=k,
            dataset=dataset,
            folder=folder,
            users=users,
            probe=depth,
            arrivals=arrived,
            title=title,
        )


def measured(paths: Sequence[Path], k: int, emit: Emit = silent) -> list[Measured]:
    """The runs with their numbers; labels are folder names, or paths where two have the same.

    Args:
        paths: Folders of finished runs.
        k: Length of the lists.
        emit: Told of each run that has to be ranked.

    Raises:
        InputError: A run cannot be read, has no test numbers, or is given twice.
    """
    short = [path.resolve().name for path in paths]
    labels = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(labels)) < len(labels):
        raise InputError("the same run is given twice", path=paths[0])
    entries = []
    for label, path in zip(labels, paths, strict=True):
        run = load_run(path)
        result = run_result(run)
        entries.append(Measured(label, run, cold_numbers(run, k, emit), result))
    return entries


def shown_data(
    run: Run, given: Path | None = None, emit: Emit = silent
) -> tuple[Dataset | None, Path | None]:
    """Titles and covers, and what relative cover paths are relative to.

    They are of the given place, or of where the run's data came from, if that still works.

    Args:
        run: The run.
        given: A dataset.
        emit: Told why there are none.

    Raises:
        InputError: The given place cannot be read.
    """
    recorded = read_json(run.path / "dataset.json")["path"]
    source = given or (Path(recorded) if recorded else None)
    if source is None or (given is None and not source.exists()):
        emit(
            "message",
            text="the run's dataset is not where it was: the report shows ids (name the dataset with --data)",
        )
        return None, None
    try:
        dataset = read_dataset(source, ReadOptions(flags=False))
    except InputError as error:
        if given is not None:
            raise
        emit("message", text=f"the report shows ids (name the dataset with --data): {error}")
        return None, None
    return dataset, source if source.is_dir() else source.parent
