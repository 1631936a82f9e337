"""Images through an encoder, one row each, in order, with bounded memory.

On a CPU every image is run alone and each thread has images of its own: the bits of a row then hang neither on the
images beside it nor on the number of threads, and decoding runs beside the products. Nothing is lost by it: an image
is a matrix of some hundred tokens. On a GPU images are run in batches, and under bfloat16 unless the encoder says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from firstlight.core.threads import in_threads
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.encoder_file import Encoder, Tokens

FloatArray = npt.NDArray[np.float32]
Job = TypeVar("Job")

#: Gives an image, or raises :class:`UnusableImageError`.
Load = Callable[[Job], Image.Image]

#: Images in a batch on a GPU.
_BATCH = 128


def extract_rows(
    encoder: Encoder,
    jobs: Sequence[Job],
    load: Load[Job],
    tokens: Tokens | None = None,
    *,
    threads: int | None = None,
) -> Iterator[FloatArray | UnusableImageError]:
    """One row an image, in the order of ``jobs``.

    Args:
        encoder: The encoder; it runs where its weights are.
        jobs: What ``load`` turns into images, a few at a time.
        load: Called in threads.
        tokens: As in :meth:`~firstlight.vision.encoder_file.Encoder.features`; patches are laid end to end.
        threads: Images at a time on a CPU; as many as torch may use if None.

    Yields:
        ``(encoder.dim(tokens),)`` float32, or why there is none.
    """
    device = next(encoder.vit.parameters()).device

    def prepared(job: Job) -> Tensor | UnusableImageError:
        try:
            return encoder.prepare(load(job))
        except UnusableImageError as error:
            return error

    def finished(job: Job) -> FloatArray | UnusableImageError:
        image = prepared(job)
        if isinstance(image, UnusableImageError):
            return image
        return _finite(encoder.features(image[None], tokens).reshape(-1).numpy())

    if device.type == "cpu":
        yield from in_threads(finished, jobs, threads)
        return
    images = in_threads(prepared, jobs, threads)
    while batch := list(islice(images, _BATCH)):
        yield from _run_batch(encoder, batch, tokens, device)


def _finite(row: FloatArray) -> FloatArray | UnusableImageError:
    """A row, or that it is none: it must not pass for a feature that is there."""
    return (
        row
        if np.isfinite(row).all()
        else UnusableImageError("the encoder makes numbers of it that are not finite")
    )


@torch.no_grad()
def _run_batch(
    encoder: Encoder, batch: list[Tensor | UnusableImageError], tokens: Tokens | None, device: torch.device
) -> Iterator[FloatArray | UnusableImageError]:
    ready = [image for image in batch if isinstance(image, Tensor)]
    rows = iter(())
    if ready:
        with torch.autocast(device.type, torch.bfloat16, enabled=encoder.precision != "float32"):
            made = encoder.features(torch.stack(ready).to(device, non_blocking=True), tokens)
        rows = iter(made.float().flatten(1).cpu().numpy())
    yield from (_finite(next(rows)) if isinstance(image, Tensor) else image for image in batch)
