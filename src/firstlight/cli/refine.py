"""The command ``refine``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command
from firstlight.cli.output import Answer, draw_pairs
from firstlight.cli.progress import TrainingProgress, duration
from firstlight.cli.vision import (
    Changes,
    Epochs,
    IdColumn,
    ImageColumn,
    Images,
    Out,
    Part,
    Recipe,
    Resume,
    Seed,
    Threads,
    shorthands,
)
from firstlight.core.outputs import check_folder

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "refine", interrupted="resume with --resume")(refine)


def refine(
    images: Images,
    encoder: Annotated[
        Path,
        typer.Option(
            metavar="ENC", help="The encoder to refine: a folder of pretrain, or a foreign checkpoint."
        ),
    ],
    out: Out,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    split: Part = None,
    recipe: Recipe = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|auto", help="τ; auto tries five in the head stage."),
    ] = None,
    changes: Changes = None,
    epochs: Epochs = None,
    head_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the head stage; short for --set heads.epochs=…")
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
) -> Answer:
    """Refine a masked-image encoder (MIM-Refiner), without labels: first heads alone, then heads and encoder."""
    from firstlight.training.refine import refine as run
    from firstlight.training.refine_config import build_refine_config
    from firstlight.vision.images import open_images

    check_folder(out)
    found = open_images(images, image_column=image_column, id_column=id_column, split=split)
    overrides = shorthands(changes, epochs=epochs, seed=seed, threads=threads)
    overrides += [] if head_epochs is None else [f"heads.epochs={head_epochs}"]
    overrides += [] if temperature is None else [f"refiner.temperature={temperature}"]
    config = build_refine_config(recipe=recipe, overrides=overrides)
    with TrainingProgress() as progress:
        result = run(found, encoder, config, out, resume=resume, emit=progress)
    return Answer({"encoder": str(out), **result}, lambda console: _draw(console, out, result))


def _draw(target: Console, out: Path, result: dict[str, Any]) -> None:
    last = result["last_epoch"]
    facts = {
        "images": result["images"]["count"],
        "heads": ", ".join(head["name"] for head in result["heads"]),
        "τ": result["temperature"],
        "queue": result["queue"],
        "neighbours drawn from": result["top_k"],
        "epochs": last.get("epoch"),
        "loss": last.get("loss"),
        "time": duration(sum(result["seconds"].values())),
    }
    if result["images"]["unusable"]:
        facts["unusable images"] = len(result["images"]["unusable"])
    draw_pairs(target, facts)
    target.print(f"the refined encoder is in {out}")
