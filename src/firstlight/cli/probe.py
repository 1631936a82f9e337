"""The command ``probe``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command, integers, names, nested, settings, validated
from firstlight.cli.output import Answer, draw_table
from firstlight.cli.progress import TrainingProgress
from firstlight.core.errors import InputError
from firstlight.core.outputs import output

if TYPE_CHECKING:
    from rich.console import Console

PROTOCOLS = ("knn", "linear", "low-shot", "clusters")


def register(app: typer.Typer) -> None:
    """Add this module's command to ``app``."""
    command(app, "probe")(probe)


def probe(
    encoders: Annotated[
        list[Path],
        typer.Argument(metavar="ENC …", help="Encoders; the others are compared with the first."),
    ],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Images with classes: a folder or a Parquet file.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="BANK/QUERIES",
            help="Names of two parts of the images; their own by default, or else a fifth becomes queries.",
        ),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the images.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with their names.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with their classes.")] = None,
    ks: Annotated[str | None, typer.Option("-k", metavar="K,K,…", help="Numbers of neighbours.")] = None,
    tasks: Annotated[
        str, typer.Option(metavar="TASK,TASK,…", help=f"What to measure, of: {', '.join(PROTOCOLS)}.")
    ] = ",".join(PROTOCOLS),
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Also train copies of the encoders with the labels.")
    ] = False,
    random_control: Annotated[
        bool, typer.Option("--random-control", help="Also measure an encoder that has learned nothing.")
    ] = False,
    long_tailed: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Thin out the bank: its largest class over its smallest."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of the protocols, e.g. linear.epochs=10."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write probe.json and the picture depth.png.")
    ] = None,
) -> Answer:
    """Measure what encoders see: k-NN at every block, linear probes, few labels, clusters.

    Labels are needed here and nowhere else. Several encoders are compared query by query.
    """
    wanted = names(tasks) + (["finetune"] if finetune else [])
    if not wanted:
        raise InputError("--tasks names nothing to measure", hint=f"of: {', '.join(PROTOCOLS)}")
    given = settings(changes or [])
    given |= {} if seed is None else {"seed": seed}
    given |= {} if long_tailed is None else {"long_tailed": long_tailed}
    given |= {} if ks is None else {"knn.k": tuple(integers(ks, "-k"))}
    from firstlight.evaluation.encoder_config import ProbeConfig
    from firstlight.evaluation.encoder_report import probe as measure
    from firstlight.training.process import use_threads

    config = validated(ProbeConfig, nested(given))
    with use_threads(threads), TrainingProgress() as progress:
        value = measure(
            encoders,
            images,
            config,
            tasks=wanted,
            split=split,
            image_column=image_column,
            id_column=id_column,
            label_column=label_column,
            control=random_control,
            emit=progress,
        )
    if out is not None:
        from firstlight.reports.encoder import write_probe

        with output(out):
            write_probe(out, value)
    return Answer(value, lambda console: _draw(console, value, out))


def _draw(target: Console, value: dict[str, Any], out: Path | None) -> None:
    """Draw the numbers as tables; encoders stand side by side."""
    about = value["images"]
    target.print(
        f"{about['queries']['images']:,} queries ({about['queries']['part']}) against a bank of "
        f"{about['bank']['images']:,} ({about['bank']['part']}), {len(about['classes'])} classes, "
        f"chance {value['chance']:.1%}"
    )
    if about["left_out"]:
        target.print(f"{about['left_out']:,} images left out: they cannot be read")
    if "knn" in value["tasks"]:
        _draw_knn(target, value)
    _draw_others(target, value)
    if out is not None:
        target.print(f"\nwritten to {out}")


def _draw_knn(target: Console, value: dict[str, Any]) -> None:
    encoders = value["encoders"]
    k = encoders[0]["knn"][0]["k"]
    tests = {
        (row["after"]["encoder"], *_key(row["after"])): row
        for row in value["paired"]
        if row["k"] == k and row["what"] == "same layer"
    }
    header = ["block", "pooling"]
    for index, encoder in enumerate(encoders):
        header += [encoder["name"], *(["z"] if index else [])]
    places = list(dict.fromkeys(_key(row) for encoder in encoders for row in encoder["knn"]))
    body = []
    for place in sorted(places):
        line: list[Any] = [_block(*place), place[2]]
        for index, encoder in enumerate(encoders):
            found = next((r for r in encoder["knn"] if _key(r) == place and r["k"] == k), None)
            line.append(None if found is None else _percent(found))
            test = tests.get((encoder["name"], *place))
            line += [f"{test['z']:+.1f}" if test else None] if index else []
        body.append(line)
    draw_table(
        target,
        header,
        body,
        title=f"\nk-NN accuracy in %, k = {k}, ± one standard error; z against the first",
    )
    pixels = next((row for row in value["pixels"] if row["k"] == k), None)
    if pixels is not None:
        target.print(f"raw pixels: {_percent(pixels)}")
    for encoder in encoders:
        target.print(_course(encoder, k))
    for row in value["paired"]:
        if row["k"] == k and row["what"] != "same layer":
            after, before = row["after"], row["before"]
            target.print(
                f"{after['encoder']}, {_where(after)}, against the best of {before['encoder']}, "
                f"{_where(before)}: {100 * row['difference']:+.2f} points, z {row['z']:+.1f}"
            )


def _course(encoder: dict[str, Any], k: int) -> str:
    """Where an encoder is best, and whether it falls towards its end."""
    words = {True: "never falls", False: "falls somewhere", None: "was not measured everywhere"}
    ends = [f"{how}: {words[rise]}" for how, rise in encoder["rises_over_last_third"][str(k)].items()]
    best = _where(encoder["best"][str(k)])
    return f"{encoder['name']}: best at {best}; over the last third of the blocks, {', '.join(ends)}"


def _draw_others(target: Console, value: dict[str, Any]) -> None:
    """One row a measure, one column an encoder."""
    encoders = value["encoders"]
    cells = [{(measure, where): shown for measure, where, shown in _others(e)} for e in encoders]
    keys = list(dict.fromkeys(key for column in cells for key in column))
    if not keys:
        return
    header = ["measure", "features", *(encoder["name"] for encoder in encoders)]
    body = [[*key, *(column.get(key) for column in cells)] for key in keys]
    draw_table(target, header, body, title="\nother protocols")
    if "low-shot" in value["tasks"]:
        target.print("few labels: logistic regression; mean and deviation over draws of the labelled images")
    if "clusters" in value["tasks"]:
        target.print(
            "clusters: k-means of the queries; silhouette and Davies–Bouldin are of the true classes"
        )
    for row in value["paired"]:
        if row["k"] is None:
            change = f"{100 * row['difference']:+.2f} points, z {row['z']:+.1f}"
            pair = f"{row['after']['encoder']} against {row['before']['encoder']}"
            target.print(f"{row['what']}: {pair}: {change}")


def _others(encoder: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Measure, features, value."""
    if "linear" in encoder:
        linear = encoder["linear"]
        yield "linear probe, %", "chosen on a part of the bank", _percent(linear)
        best = f"{100 * linear['best_on_queries']:.2f}"
        yield "linear probe, %", "best on the queries, as papers have it", best
    for entry in encoder.get("low_shot", []):
        deviation = entry["deviation"]
        spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
        labels = entry["labels"].replace(" %", " % of the labels")
        yield f"{labels}, %", _where(entry), f"{100 * entry['accuracy']:.2f}{spread}"
    for entry in encoder.get("clusters", []):
        for key, label in (("accuracy", "ACC"), ("nmi", "NMI"), ("ami", "AMI"), ("ari", "ARI")):
            yield f"clusters: {label}, %", _where(entry), f"{100 * entry[key]:.2f}"
        yield "silhouette", _where(entry), f"{entry['silhouette']:.3f}"
        yield "Davies–Bouldin (lower is better)", _where(entry), f"{entry['davies_bouldin']:.2f}"
    if "finetuned" in encoder:
        yield "fine-tuned, %", "all weights", _percent(encoder["finetuned"])


def _key(row: dict[str, Any]) -> tuple[int, bool, str]:
    return row["block"], row["after_final_norm"], row["pooling"]


def _block(block: int, after_norm: bool, _pooling: str) -> str:
    return f"{block}, after the norm" if after_norm else str(block)


def _where(row: dict[str, Any]) -> str:
    return f"block {_block(*_key(row))} ({row['pooling']})"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.2f} ± {100 * row['standard_error']:.2f}"
