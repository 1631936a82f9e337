"""Batches of augmented images in an order that only seed and epoch decide.

Small images are decoded once into memory and augmented as tensors; large ones are decoded and augmented on Pillow for
each use, in worker processes. Every image draws from a stream of its own, named by epoch and row, so neither the number
of workers nor a resumed run changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from firstlight.core.distributed import gather_texts, own_slice, rank
from firstlight.core.errors import InputError
from firstlight.core.events import Emit, silent
from firstlight.core.seeds import numpy_stream, torch_stream, uniforms
from firstlight.vision.augment import UNIFORMS, FloatArray, crops
from firstlight.vision.augment_batch import crops_batch
from firstlight.vision.crop_config import CropConfig
from firstlight.vision.decoder import UnusableImageError
from firstlight.vision.image_set import ImageSet
from firstlight.vision.objective import ImageBatch

#: Unusable images in a row after which the set is given up.
_MOST_SUBSTITUTES = 100

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PixelCache:
    """Decoded images of any sizes on one canvas size.

    Attributes:
        pixels: ``(n, H, 3, W)`` uint8; see :func:`firstlight.vision.augment_batch.crops_batch`.
        sizes: ``(n, 2)`` int64.
        unusable: Row → why it is empty.
    """

    pixels: Tensor
    sizes: Tensor
    unusable: dict[int, str] = field(default_factory=dict)


def decode_all(images: ImageSet, max_bytes: int, covers: tuple[int, int] | None = None) -> PixelCache | None:
    """Decode a whole set, or give up as soon as it would take more than ``max_bytes``.

    The canvas is made once, by what the heads of the files say: growing it would take the memory twice. The largest
    images are decoded before their heads are believed: one torn file would make it large for all.

    Args:
        images: The set.
        max_bytes: Most memory for the decoded images.
        covers: As in :meth:`firstlight.vision.image_set.ImageSet.load`.
    """
    canvas_size = _canvas_size(images, max_bytes, covers)
    if canvas_size is None:
        return None
    canvas = np.zeros((len(images), canvas_size[0], 3, canvas_size[1]), np.uint8)
    sizes, unusable = np.ones((len(images), 2), np.int64), {}
    for row in range(len(images)):
        try:
            image = np.asarray(images.load(row, covers)).transpose(0, 2, 1)
        except UnusableImageError as error:
            unusable[row] = str(error)
            continue
        height, width = max(canvas.shape[1], image.shape[0]), max(canvas.shape[3], image.shape[2])
        if 3 * height * width * len(images) > max_bytes:
            return None
        if (height, width) != (canvas.shape[1], canvas.shape[3]):  # the head of this file said something else
            larger = np.zeros((len(images), height, 3, width), np.uint8)
            larger[:, : canvas.shape[1], :, : canvas.shape[3]] = canvas
            canvas = larger
        canvas[row, : image.shape[0], :, : image.shape[2]] = image
        sizes[row] = image.shape[0], image.shape[2]
    return PixelCache(torch.from_numpy(canvas), torch.from_numpy(sizes), unusable)


def _canvas_size(images: ImageSet, max_bytes: int, covers: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width that hold all images by their heads, or None if a canvas of it for each is too much."""
    told, tried = np.ones((len(images), 2), np.int64), set[int]()

    def largest(rows: int) -> tuple[int, int]:
        """Of the first rows; what only a file says that cannot be decoded is forgotten."""
        while True:
            doubtful = {int(row) for row in told[:rows].argmax(0)} - tried
            for row in doubtful:
                tried.add(row)
                try:
                    images.load(row, covers)
                except UnusableImageError:
                    told[row] = 1
            if not doubtful:
                height, width = told[:rows].max(0).tolist()
                return height, width

    height, width = 1, 1
    for row in range(len(images)):
        with suppress(UnusableImageError):
            told[row] = images.size(row, covers)
        height, width = max(height, int(told[row, 0])), max(width, int(told[row, 1]))
        if 3 * height * width * len(images) > max_bytes:
            height, width = largest(row + 1)
            if 3 * height * width * len(images) > max_bytes:
                return None
    return largest(len(images))


def covered(config: CropConfig) -> tuple[int, int]:
    """Height and width that images are shrunk to cover, if they are larger: twice those of the largest crop.

    Then no crop but the very smallest is made of fewer pixels than it gets, so nothing is lost that a step would see,
    and large pictures cost no more than small ones.
    """
    return 2 * max(view.size[0] for view in config.views), 2 * max(view.size[1] for view in config.views)


class ImageLoader:
    """Epochs of batches.

    Args:
        images: The set.
        config: Crops of each image.
        batch_size: Images in a step, over all ranks.
        seed: The run's seed.
        workers: Processes that decode and augment where images are not kept in memory; 0: this one.
        cache_bytes: Most memory for decoded images; if they need more, none are kept.
        device: Where decoded images are kept and augmented.
        emit: Told of every unusable image once, by id; and if a GPU will wait for images.

    Attributes:
        steps: Steps in an epoch; a last partial batch is dropped.
        cache: The decoded images, or None.
        unusable: Row → why, of those met so far; those that other ranks met, after :meth:`share_unusable`.

    Raises:
        InputError: There are fewer usable images than one batch takes.
    """

    def __init__(
        self,
        images: ImageSet,
        config: CropConfig,
        batch_size: int,
        seed: int,
        *,
        workers: int = 0,
        cache_bytes: int = 2**30,
        device: torch.device | str = "cpu",
        emit: Emit = silent,
    ) -> None:
        self.images, self.config, self.batch_size, self.seed = images, config, batch_size, seed
        self.workers, self.device, self.emit = workers, torch.device(device), emit
        self.unusable: dict[int, str] = {}
        self._shared: set[int] = set()  # what all ranks know of
        cache = decode_all(images, cache_bytes, covered(config))
        self.cache = None if cache is None else replace(cache, pixels=cache.pixels.to(self.device))
        rows = np.arange(len(images))
        if self.cache is not None:
            self._report(self.cache.unusable)
            self._shared.update(self.cache.unusable)
            rows = np.delete(rows, list(self.cache.unusable))
        self.rows: Rows = rows
        self.steps = len(rows) // batch_size
        if self.cache is None and not workers and self.device.type == "cuda":
            limit = f"decoded, the images take more than {cache_bytes >> 20:,} MB (training.cache_mb)"
            emit(
                "message", text=f"{limit}; the GPU waits for one process to decode them: see training.workers"
            )
        own_slice(batch_size)  # refuses a batch that the ranks cannot share evenly
        if not self.steps:
            raise InputError(
                f"{len(rows):,} usable images are fewer than one batch of {batch_size:,}",
                path=images.source,
                hint=f"--set training.batch_size={2 ** int(np.log2(len(rows)))}" if len(rows) > 1 else None,
            )

    def epoch(self, number: int, start: int = 0) -> Iterator[ImageBatch]:
        """This rank's part of the batches of one epoch.

        Args:
            number: The epoch, from 0.
            start: Batches to leave out at the beginning.
        """
        order = torch.randperm(len(self.rows), generator=torch_stream(self.seed, "order", number))
        ordered = self.rows[order.numpy()][: self.steps * self.batch_size]
        own = own_slice(self.batch_size)
        batches = [rows[own] for rows in ordered.reshape(self.steps, self.batch_size)[start:]]
        if self.cache is not None:
            yield from (self._cached(self.cache, rows, number) for rows in batches)
            return
        work = _Batches(self.images, self.config, self.seed, number, batches)
        if self.workers == 0:
            yield from (self._checked(work[index]) for index in range(len(work)))
            return
        loader = DataLoader(
            work,
            batch_size=None,
            num_workers=self.workers,
            # the global generator must not be read: it would tie a run to what ran before it
            generator=torch_stream(self.seed, "workers", number, rank()),
        )
        yield from (self._checked(made) for made in loader)

    def _cached(self, cache: PixelCache, rows: Rows, epoch: int) -> ImageBatch:
        at = torch.from_numpy(rows)
        decided = _decided(self.seed, epoch, rows, self.config)
        pixels = cache.pixels[at.to(cache.pixels.device)]
        return ImageBatch(crops_batch(pixels, cache.sizes[at], self.config, decided), at)

    def know(self, unusable: Mapping[str, str]) -> None:
        """Take over what an interrupted run reported already (id → why)."""
        for row, name in enumerate(self.images.ids if unusable else []):
            if name in unusable:
                self.unusable[row] = unusable[name]
                self._shared.add(row)

    def share_unusable(self) -> None:
        """Tell the other ranks which images could not be used, and learn of theirs; all ranks call it together."""
        new = {row: why for row, why in self.unusable.items() if row not in self._shared}
        for text in gather_texts(json.dumps(new)):
            self._report({int(row): why for row, why in json.loads(text).items()})
        self._shared.update(self.unusable)

    def _checked(self, made: _Made) -> ImageBatch:
        self._report(made.unusable)
        if not made.views:
            raise InputError(
                f"{_MOST_SUBSTITUTES} images after each other cannot be used", path=self.images.source
            )
        return ImageBatch(made.views, made.rows)

    def _report(self, unusable: dict[int, str]) -> None:
        for row, reason in unusable.items():
            if row not in self.unusable:
                self.unusable[row] = reason
                self.emit("unusable", id=self.images.ids[row], reason=reason)


def _decided(seed: int, epoch: int, rows: Rows, config: CropConfig) -> FloatArray:
    """What decides the crops of images in an epoch, ``(b, crops, UNIFORMS)``."""
    count = len(config.crops) * UNIFORMS
    return uniforms(seed, "augment", epoch, rows=rows, count=count).reshape(len(rows), -1, UNIFORMS)


@dataclass(frozen=True, eq=False)
class _Made:
    """A batch on its way from a worker; no views if too many images were unusable."""

    views: list[Tensor]
    rows: Tensor
    unusable: dict[int, str]


class _Batches(Dataset[_Made]):
    """What a worker does: decode and augment the rows of a batch on Pillow."""

    def __init__(
        self, images: ImageSet, config: CropConfig, seed: int, epoch: int, batches: list[Rows]
    ) -> None:
        self.images, self.config, self.seed, self.epoch, self.batches = images, config, seed, epoch, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Made:
        views: list[list[Tensor]] = [[] for _ in self.config.crops]
        used: list[int] = []
        unusable: dict[int, str] = {}
        for wanted in self.batches[index].tolist():
            found = self._load(wanted, unusable)
            if found is None:
                return _Made([], torch.tensor(used), unusable)
            row, image = found
            # Named by the image that was wanted: the substitute may stand in the same batch on its own account, and
            # equal crops would be each other's negatives.
            decided = _decided(self.seed, self.epoch, np.array([wanted]), self.config)[0]
            for view, crop in zip(views, crops(image, self.config, decided), strict=True):
                view.append(crop)
            used.append(row)
        return _Made([torch.stack(view) for view in views], torch.tensor(used), unusable)

    def _load(self, row: int, unusable: dict[int, str]) -> tuple[int, Image.Image] | None:
        """An image; another one takes the place of one that cannot be used, so that batches stay full."""
        for _ in range(_MOST_SUBSTITUTES):
            try:
                return row, self.images.load(row, covered(self.config))
            except UnusableImageError as error:
                unusable[row] = str(error)
                stream = numpy_stream(self.seed, "substitute", self.epoch, row)
                row = int(stream.integers(len(self.images)))
        return None
