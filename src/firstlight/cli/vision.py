"""Commands about images and encoders: ``pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command
from firstlight.cli.output import Answer, draw_pairs
from firstlight.cli.progress import TrainingProgress, duration
from firstlight.core.outputs import check_folder
from firstlight.vision import OBJECTIVES

if TYPE_CHECKING:
    from rich.console import Console

Images = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES",
        help="A folder of image files, a Parquet file with image bytes, or a data folder whose items have covers.",
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of a Parquet file that holds the images.")
]
IdColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of a Parquet file that names them.")
]
Part = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="PART", help="Use only rows (or the sub-folder) of this part, e.g. train."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(help="Name of a shipped recipe, or a YAML file; the other options go over it."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of the config, e.g. training.batch_size=128."),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs; short for --set training.epochs=…")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of every random stream; short for --set training.seed=…")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; short for --set training.threads=…")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
Out = Annotated[Path, typer.Option(metavar="ENC", help="Folder of the encoder.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "pretrain", interrupted="resume with --resume")(pretrain)


def pretrain(
    images: Images,
    out: Out,
    objective: Annotated[
        str | None,
        typer.Option(metavar="|".join(OBJECTIVES.names()), help="What is predicted: pixels, or features."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--encoder", metavar="ENC", help="Go on from this encoder, with a new optimiser and schedule."
        ),
    ] = None,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    split: Part = None,
    recipe: Recipe = None,
    changes: Changes = None,
    epochs: Epochs = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
) -> Answer:
    """Train an encoder from images alone, without labels."""
    from firstlight.training.encoder_config import build_pretrain_config
    from firstlight.training.pretrain import pretrain as run
    from firstlight.vision.encoder_file import load_encoder
    from firstlight.vision.images import open_images

    check_folder(out)
    found = open_images(images, image_column=image_column, id_column=id_column, split=split)
    config = build_pretrain_config(
        found,
        recipe=recipe,
        objective=objective,
        overrides=shorthands(changes, epochs=epochs, seed=seed, threads=threads),
        start=None if start is None else load_encoder(start).vit.config,
    )
    with TrainingProgress() as progress:
        result = run(found, config, out, start=start, resume=resume, emit=progress)
    return Answer({"encoder": str(out), **result}, lambda console: _draw(console, out, result))


def shorthands(changes: list[str] | None, **values: int | None) -> list[str]:
    """``--set`` texts with the short options for fields of ``training`` behind them."""
    return list(changes or []) + [
        f"training.{name}={value}" for name, value in values.items() if value is not None
    ]


def _draw(target: Console, out: Path, result: dict[str, Any]) -> None:
    images, last = result["images"], result["last_epoch"]
    facts = {
        "images": images["count"],
        "epochs": last.get("epoch"),
        "loss": last.get("loss"),
        "time": duration(sum(result["seconds"].values())),
        "images a second": result.get("images_per_second"),
    }
    if images["unusable"]:
        facts["unusable images"] = len(images["unusable"])
    if images["without_image"]:
        facts["rows without an image"] = images["without_image"]
    draw_pairs(target, {name: value for name, value in facts.items() if value is not None})
    target.print(f"the encoder is in {out}")
