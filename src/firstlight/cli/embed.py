"""The command ``embed``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.options import command, two_integers
from firstlight.cli.output import Answer, draw_pairs, say
from firstlight.cli.vision import IdColumn, ImageColumn, Images, Part
from firstlight.core.choices import one_of
from firstlight.core.outputs import check_folder

if TYPE_CHECKING:
    from rich.console import Console

TOKENS = ("class", "mean", "patches")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")
#: Unusable images that are named; the rest are counted.
NAMED = 10


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    command(app, "embed", interrupted="the same command goes on where it stopped")(embed)


def embed(
    images: Images,
    encoder: Annotated[
        Path,
        typer.Option(metavar="ENC", help="Folder of an encoder, or a checkpoint file of another project."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DATASET_OR_FOLDER",
            help="A dataset folder, which gets the feature, or a new one with the images as items.",
        ),
    ],
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TOKENS), help="What stands for an image; by default as the encoder says."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHT,WIDTH",
            help="Size of the images, such as 240,160 for posters; by default the encoder's.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the feature.")] = "encoder",
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    split: Part = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS),
            help="Of products; by default float32 on a CPU and bfloat16 on a GPU. bfloat16 is two to four times as "
            "fast on processors with instructions for it.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Images at a time on a CPU.")] = None,
    device: Annotated[
        str,
        typer.Option(metavar="|".join(DEVICES), help="Where the encoder runs; auto: a GPU if there is one."),
    ] = "auto",
) -> Answer:
    """Run images through an encoder and keep a row of features for each; an interrupted run goes on."""
    choices = (
        (tokens, TOKENS, "--tokens"), (device, DEVICES, "--device"), (precision, PRECISIONS, "--precision")
    )  # fmt: skip
    for value, allowed, option in choices:
        if value is not None:
            one_of(value, allowed, option)
    from firstlight.views.embed_files import embed_files

    check_folder(out)
    result = embed_files(
        images,
        encoder,
        out,
        name=name,
        tokens=tokens,  # type: ignore[arg-type]  # checked by one_of
        image_size=None if image_size is None else two_integers(image_size, "--image-size"),
        image_column=image_column,
        id_column=id_column,
        split=split,
        precision=precision,  # type: ignore[arg-type]  # checked by one_of
        threads=threads,
        device=device,  # type: ignore[arg-type]  # checked by one_of
        emit=EmbedProgress(),
    )
    return Answer(result, lambda console: _draw(console, result))


class EmbedProgress:
    """Says how far it is, now and then, and names the first unusable images."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._named = 0
        self._pause = 1.0 if sys.stderr.isatty() else 10.0

    def __call__(self, event: str, /, **values: Any) -> None:
        """Draw one event."""
        if event == "note":
            say(str(values["text"]))
        elif event == "message":
            self._named += 1
            if self._named <= NAMED:
                say(str(values["text"]))
        elif event == "images" and time.monotonic() - self._said > self._pause:
            self._said = time.monotonic()
            say(f"{values['done']:,} of {values['total']:,} images")


def _draw(target: Console, result: dict[str, Any]) -> None:
    facts: dict[str, Any] = {
        "images": result["images"],
        "width of a row": result["dim"],
        "images a second": result["images_per_second"],
    }
    if result["unusable"]:
        facts["unusable images"] = len(result["unusable"])
    if result["images_that_are_no_items"]:
        facts["images that are no items"] = result["images_that_are_no_items"]
    draw_pairs(target, {name: value for name, value in facts.items() if value is not None})
    state = "was there already" if result["already_there"] else "is"
    target.print(f"feature {result['feature']} {state} in {result['dataset']}")
