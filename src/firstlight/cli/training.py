"""The command ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.data import Source
from firstlight.cli.options import Reading, command
from firstlight.cli.output import Answer, draw_table, say
from firstlight.cli.progress import TrainingProgress
from firstlight.core.outputs import check_folder
from firstlight.models import MODELS

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.data.dataset import Dataset


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "train", reads=True, interrupted="resume with --resume")(train)


def train(
    path: Source,
    reading: Reading,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    model: Annotated[
        str | None, typer.Option(metavar="|".join(MODELS.names()), help="The recommender.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="bpr|softmax|bsl|adap-tau|adap-tau0", help="The training loss.")
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="fixed:0.1|learned|learned-user|adaptive|adaptive-user", help="The temperature's policy."
        ),
    ] = None,
    negatives: Annotated[
        str | None,
        typer.Option(metavar="uniform|shared|in-batch|all", help="What a positive is contrasted with."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Name of a shipped recipe, or a YAML file; the other options go over it."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of the config, e.g. model.dim=128."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs; short for --set training.epochs=…")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream of the run.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; short for --set training.threads=…")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the vectors of this run, with its config unless a recipe is named.",
        ),
    ] = None,
    refit: Annotated[
        Path | None,
        typer.Option(
            "--refit",
            metavar="RUN",
            help="Train the model of this run again on all parts of the data, as long as its search found.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
) -> Answer:
    """Train a model on a dataset and evaluate it on the test part."""
    from firstlight.training.config import build_config
    from firstlight.training.notes import ignored_by_training, without_test
    from firstlight.training.run import train as train_run
    from firstlight.training.run_folder import load_run

    check_folder(out)
    if refit is not None:
        from firstlight.training.refit import refuse_settings

        refuse_settings([model, loss, temperature, negatives, recipe, changes, epochs, seed, start])
        return _refit(reading.read(path), refit, out, threads, resume)
    overrides = list(changes or [])
    overrides += [] if epochs is None else [f"training.epochs={epochs}"]
    overrides += [] if threads is None else [f"training.threads={threads}"]
    yesterday = None if start is None else load_run(start)
    config = build_config(
        recipe=recipe,
        model=model,
        loss=loss,
        temperature=temperature,
        negatives=negatives,
        overrides=overrides,
        seed=seed,
        start=start,
    )
    named = {"--loss": loss, "--temperature": temperature, "--negatives": negatives, "--epochs": epochs}
    used = [name for name, value in named.items() if value is not None]
    dataset = reading.read(path)
    for note in (*ignored_by_training(config, used, changes or []), *without_test(dataset)):
        say(note)
    with TrainingProgress() as progress:
        result = train_run(dataset, config, out, start=yesterday, resume=resume, emit=progress)
    return Answer({"run": str(out), **result}, lambda console: draw_result(console, out, result))


def _refit(dataset: Dataset, run: Path, out: Path, threads: int | None, resume: bool) -> Answer:
    from firstlight.training.refit import everything, refit_config
    from firstlight.training.run import train as train_run
    from firstlight.training.run_folder import load_run

    config = refit_config(load_run(run), threads)
    with TrainingProgress() as progress:
        result = train_run(everything(dataset), config, out, resume=resume, emit=progress)
    return Answer({"run": str(out), **result}, lambda console: draw_result(console, out, result))


def draw_result(target: Console, out: Path, result: dict[str, Any]) -> None:
    """Draw what a run reached and how its length was found."""
    found, protocol = result["found"], result["protocol"]
    if found.get("epochs"):
        target.print(f"{found['epochs']} epochs; {protocol['meaning']}")
    if result["metrics"]:
        draw_metrics(target, result["metrics"])
    else:
        target.print("there is no test part, so there are no numbers")
    leaky = found.get("selected_on_test")
    if leaky:
        target.print()
        target.print(f"{leaky['epochs']} epochs; {leaky['protocol']}")
        draw_metrics(target, leaky["metrics"])
    for reason, count in result["dataset"]["dropped"].items():
        target.print(f"left out of the data: {count:,} × {reason}")
    target.print(f"the run is in {out}")


def draw_metrics(target: Console, metrics: dict[str, float]) -> None:
    """Draw metrics as a table: one row a metric, one column a cut-off."""
    from firstlight.evaluation.ranking import metric_table

    table = metric_table(metrics)
    draw_table(target, table.columns, table.rows())
