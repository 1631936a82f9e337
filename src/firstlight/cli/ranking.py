"""Commands about trained runs: ``evaluate``, ``compare``, ``recommend``, ``similar``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import Reading, command, integers, names
from firstlight.cli.output import Answer, draw_table, say, tell
from firstlight.cli.training import draw_metrics
from firstlight.core.choices import one_of
from firstlight.core.errors import InputError
from firstlight.core.outputs import check_file

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from firstlight.training.assess import ColdAssessment

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Length = Annotated[int, typer.Option("-k", min=1, help="Length of the lists.")]
Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write to .parquet, .csv or .jsonl instead of the screen.")
]
WARMTH = ("all", "warm", "cold")
PROTOCOLS = ("ranking", "cold")


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "evaluate", reads=True)(evaluate)
    command(app, "compare")(compare)
    command(app, "recommend")(recommend)
    command(app, "similar")(similar)


def evaluate(
    run: RunFolder,
    reading: Reading,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="Another dataset to test on; ids are matched.")
    ] = None,
    targets: Annotated[
        str, typer.Option(metavar="|".join(WARMTH), help="Count held-out pairs on such items.")
    ] = "all",
    pool: Annotated[str, typer.Option(metavar="|".join(WARMTH), help="Rank such items.")] = "all",
    ks: Annotated[str, typer.Option("-k", metavar="K,K,…", help="Lengths of the list.")] = "10,20,50",
    part: Annotated[str, typer.Option(metavar="valid|test", help="Which part is held out.")] = "test",
    protocol: Annotated[
        str,
        typer.Option(
            metavar="|".join(PROTOCOLS),
            help="One ranking, or warm and cold targets side by side, each in its own pool and in the whole one.",
        ),
    ] = "ranking",
) -> Answer:
    """Rank all items for all users and measure.

    Warm items have clicks in what the model was trained on, cold items have none. What --protocol cold finds on the
    run's own test part stays in the run's folder, where report reads it.
    """
    one_of(targets, WARMTH, "--targets")
    one_of(pool, WARMTH, "--pool")
    one_of(part, ("valid", "test"), "--part")
    one_of(protocol, PROTOCOLS, "--protocol")
    cuts = integers(ks, "-k")
    if protocol == "cold" and (targets, pool) != ("all", "all"):
        raise InputError(
            "--protocol cold reports every kind of target in every pool",
            hint="leave out --targets and --pool",
        )
    from firstlight.training.assess import assess
    from firstlight.training.recorded import evaluate_cold
    from firstlight.training.run_folder import load_run

    loaded = load_run(run)
    dataset = None if path is None else reading.read(path)
    if protocol == "cold":
        cold = evaluate_cold(loaded, dataset, part=part, ks=cuts, emit=tell)  # type: ignore[arg-type]
        return Answer({"run": run, "data": path, **cold.to_dict()}, lambda target: _draw_cold(target, cold))
    found = assess(loaded, dataset, part=part, targets=targets, pool=pool, ks=cuts)  # type: ignore[arg-type]

    def draw(target: Console) -> None:
        target.print(found.heading)
        draw_metrics(target, found.metrics)

    return Answer({"run": run, "data": path, **found.to_dict()}, draw)


def _draw_cold(target: Console, found: ColdAssessment) -> None:
    """Warm and cold targets side by side."""
    target.print(found.heading)
    draw_table(target, found.table.columns, found.table.rows())
    groups = found.report.groups
    if groups is not None:
        shown = groups.select(name for name in groups.columns if not name.startswith("exposure@"))
        title = "by training clicks of the item, all targets, all items ranked"
        draw_table(target, shown.columns, shown.rows(), title=title)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN …", help="Finished runs; the first is the reference.")
    ],
    metrics: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Per-user metrics.")
    ] = "recall@20,ndcg@20",
    different_data: Annotated[
        bool, typer.Option("--different-data", help="Allow runs on other data, paired by user row.")
    ] = False,
) -> Answer:
    """Test runs against the first one.

    Paired tests over users and, where a configuration was run with several seeds, over seeds; p-values are
    Holm-corrected for the number of comparisons.
    """
    from firstlight.evaluation.compare import compare as compare_runs
    from firstlight.training.assess import run_result
    from firstlight.training.run_folder import load_run

    results = [run_result(load_run(run)) for run in runs]
    table = compare_runs(results, names(metrics), allow_different_data=different_data)
    rows = table.to_dicts()
    return Answer({"runs": runs, "comparison": rows}, lambda target: _draw_comparison(target, rows))


def _draw_comparison(target: Console, rows: list[dict[str, Any]]) -> None:
    headers = [
        "metric",
        "run",
        "seeds",
        "mean",
        "sd",
        "difference",
        "95 % interval",
        "p (users)",
        "p (seeds)",
    ]
    body = []
    for row in rows:
        interval = "" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        relative = "" if row["relative"] is None else f" ({row['relative']:+.1%})"
        difference = "reference" if row["difference"] is None else f"{row['difference']:+.4f}{relative}"
        head = [row["metric"], row["name"], row["seeds"], row["mean"], row["sd"]]
        body.append([*head, difference, interval, row["p_users"], row["p_seeds"]])
    draw_table(target, headers, body)


def recommend(
    run: RunFolder,
    users: Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Raw user ids.")] = None,
    users_file: Annotated[Path | None, typer.Option(help="A text file with one raw user id a line.")] = None,
    k: Length = 20,
    out: Output = None,
) -> Answer:
    """List the best unseen items of users; those without a training click get the most popular ones.

    Without --users or --users-file the lists of all users are written to --out.
    """
    wanted = _wanted(users, users_file)
    if wanted is None and out is None:
        raise InputError(
            "which users?", hint="name some with --users or --users-file, or write all to a file with --out"
        )
    from firstlight.pipeline import served

    return _lists(served.recommend(run, wanted, k, tell), run, out, "user", "item")


def similar(
    run: RunFolder,
    items: Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Raw item ids.")] = None,
    items_file: Annotated[Path | None, typer.Option(help="A text file with one raw item id a line.")] = None,
    k: Length = 10,
    out: Output = None,
) -> Answer:
    """List the items most similar to items, by the cosine of their vectors.

    Without --items or --items-file the lists of all items are written to --out.
    """
    wanted = _wanted(items, items_file)
    if wanted is None and out is None:
        raise InputError(
            "which items?", hint="name some with --items or --items-file, or write all to a file with --out"
        )
    from firstlight.pipeline import served

    return _lists(served.similar(run, wanted, k, tell), run, out, "item", "similar")


def _wanted(given: str | None, file: Path | None) -> list[str] | None:
    """Raw ids from the command line, from a file, or None for all."""
    if given is not None and file is not None:
        raise InputError("ids are named twice, in an option and in a file", hint="use one of the two")
    if file is None:
        found = None if given is None else names(given)
    else:
        try:
            found = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the ids cannot be read: {error}", path=file) from error
    if found is not None and not found:
        raise InputError("no id is named", path=file)
    return found


def _lists(tables: Iterator[pl.DataFrame], run: Path, out: Path | None, owner: str, listed: str) -> Answer:
    """Lists as a file, or on the screen."""
    from firstlight.training.recommend import write_lists

    if out is not None:
        check_file(out)
        rows = write_lists(tables, out)
        return Answer(
            {"run": run, "out": out, "rows": rows}, lambda target: target.print(f"{out}: {rows:,} rows")
        )
    lists: dict[str, list[dict[str, Any]]] = {}
    for table in tables:
        for row in table.iter_rows(named=True):
            entry = {name: value for name, value in row.items() if name not in (owner, "rank")}
            lists.setdefault(row[owner], []).append(entry)
    if not lists:
        say("there is nothing to list")

    def draw(target: Console) -> None:
        rows = [
            [name, place, *entry.values()]
            for name, entries in lists.items()
            for place, entry in enumerate(entries, 1)
        ]
        basis = ["basis"] if listed == "item" else []
        draw_table(target, [owner, "rank", listed, "score", *basis], rows)

    return Answer({"run": run, "lists": lists}, draw)
