"""Images and an encoder from their files into a feature: the whole of ``firstlight embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from firstlight.core.choices import one_of
from firstlight.core.devices import chosen_device
from firstlight.core.events import Emit, silent
from firstlight.views.embed import embed
from firstlight.vision.encoder_file import Precision, Tokens, foreign_notes, load_encoder, resized
from firstlight.vision.images import open_images

Device = Literal["auto", "cpu", "cuda"]


def embed_files(
    images: Path,
    encoder: Path,
    out: Path,
    *,
    name: str = "encoder",
    tokens: Tokens | None = None,
    image_size: tuple[int, int] | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    split: str | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    device: Device = "auto",
    emit: Emit = silent,
) -> dict[str, Any]:
    """Run images through an encoder and keep a row of features for each; an interrupted call goes on.

    Args:
        images: A folder of images, a Parquet file with image bytes, or a dataset with covers.
        encoder: The folder of an encoder, or a checkpoint of another project.
        out: A dataset folder, which gets the feature; or a new one, which gets the images as items.
        name: The feature's name.
        tokens: What stands for an image; as the encoder says if None.
        image_size: Height and width that images are brought to; the encoder's own if None.
        image_column: Column of a Parquet file that holds the images.
        id_column: Column of a Parquet file that names them.
        split: Only rows (or the sub-folder) of this part.
        precision: Of products; bfloat16 on a GPU and float32 on a CPU if None.
        threads: Images at a time on a CPU.
        device: Where the encoder runs; ``auto``: on a GPU if there is one.
        emit: Told what was made of a foreign checkpoint, and all that :func:`firstlight.views.embed.embed` tells.

    Returns:
        As :func:`firstlight.views.embed.embed`.

    Raises:
        InputError: Something cannot be read, or ``out`` cannot take the feature.
    """
    if tokens is not None:
        one_of(tokens, get_args(Tokens), "tokens")
    if precision is not None:
        one_of(precision, get_args(Precision), "precision")
    one_of(device, get_args(Device), "device")
    found = open_images(images, image_column=image_column, id_column=id_column, split=split)
    loaded = load_encoder(encoder)
    for note in foreign_notes(loaded):
        emit("note", text=note)
    if image_size is not None:
        loaded = resized(loaded, image_size)
    loaded.vit.to(chosen_device(device))
    return embed(
        found, loaded, out, name=name, tokens=tokens, precision=precision, threads=threads, emit=emit
    )
