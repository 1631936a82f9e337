"""Batches: the same whatever the workers, the start, the ranks; bad images are named and replaced."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.core.errors import InputError
from firstlight.vision import loader as loader_module
from firstlight.vision.crop_config import crop_and_flip, multi_crop
from firstlight.vision.image_set import ImageSet
from firstlight.vision.loader import ImageLoader, decode_all

CROPS = multi_crop((16, 16), (8, 8), n_local=2)


def image_set(n=11, broken=(), side=14):
    rng = np.random.default_rng(0)
    values = []
    for row in range(n):
        target = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(target, "PNG")
        values.append(b"torn" if row in broken else target.getvalue())
    return ImageSet([f"image {row}" for row in range(n)], "here", "hash", values)


def batches(images, epoch=0, start=0, **options):
    options = {"batch_size": 4, "seed": 3, "cache_bytes": 0} | options
    loader = ImageLoader(images, CROPS, **options)
    return list(loader.epoch(epoch, start))


def equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@pytest.mark.parametrize("cache", [0, 2**30])
def test_an_epoch(cache):
    made = batches(image_set(), cache_bytes=cache)
    assert len(made) == 2  # the last three are dropped
    assert [view.shape for view in made[0].views] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)] * 2
    rows = torch.cat([batch.rows for batch in made])
    assert len(rows.unique()) == 8
    equal(made, batches(image_set(), cache_bytes=cache))
    equal(made[1:], batches(image_set(), start=1, cache_bytes=cache))
    other = batches(image_set(), epoch=1, cache_bytes=cache)
    assert not torch.equal(torch.cat([batch.rows for batch in other]), rows)
    reseeded = batches(image_set(), seed=4, cache_bytes=cache)
    assert not torch.equal(torch.cat([batch.rows for batch in reseeded]), rows)


def test_an_image_is_cropped_anew_in_every_epoch():
    loader = ImageLoader(image_set(4), CROPS, 4, 0)
    first, second = (next(iter(loader.epoch(epoch))) for epoch in (0, 1))
    order = [batch.rows.argsort() for batch in (first, second)]
    assert not torch.equal(first.views[0][order[0]], second.views[0][order[1]])


def test_workers_change_nothing():
    before = torch.random.get_rng_state()
    one = batches(image_set(broken={5}), workers=0)
    equal(one, batches(image_set(broken={5}), workers=2))
    equal(one, batches(image_set(broken={5}), workers=1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("cache", [0, 2**30])
def test_ranks_share_each_batch(monkeypatch, cache):
    whole = batches(image_set(), cache_bytes=cache)
    for rank in (0, 1):
        own = slice(2 * rank, 2 * rank + 2)
        monkeypatch.setattr(loader_module, "own_slice", lambda n, own=own: own)
        for part, full in zip(batches(image_set(), cache_bytes=cache), whole, strict=True):
            assert torch.equal(part.rows, full.rows[own])
            for a, b in zip(part.views, full.views, strict=True):
                assert torch.allclose(a, b[own], atol=1e-5)


@pytest.mark.parametrize("cache", [0, 2**30])
def test_unusable_images_are_named_once_and_replaced(cache):
    told = []
    loader = ImageLoader(
        image_set(8, broken={2, 6}), CROPS, 4, 0, cache_bytes=cache,
        emit=lambda name, **values: told.append((name, values)),
    )  # fmt: skip
    made = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    assert sorted(loader.unusable) == [2, 6]
    assert sorted(values["id"] for _, values in told) == ["image 2", "image 6"]
    assert {name for name, _ in told} == {"unusable"}
    assert all("cannot be decoded" in values["reason"] for _, values in told)
    assert all(len(batch) == 4 for batch in made)
    assert not {2, 6} & set(torch.cat([batch.rows for batch in made]).tolist())
    assert len(made) == (3 if cache else 6)  # decoded at once, they are not counted among the images


def test_a_substitute_gets_crops_of_its_own():
    """It stands in the same batch as itself here, as it may elsewhere; equal crops would contradict each other."""
    batch = batches(image_set(8, broken={2, 6}), batch_size=8)[0]
    rows = batch.rows.tolist()
    twice = [row for row in set(rows) if rows.count(row) > 1]
    assert twice
    for row in twice:
        first, second = [place for place, other in enumerate(rows) if other == row][:2]
        assert not any(torch.equal(view[first], view[second]) for view in batch.views)


def test_images_beyond_the_budget_are_not_kept():
    images = image_set(5)
    exact = 5 * 3 * 14 * 14
    assert decode_all(images, exact - 1) is None
    kept = decode_all(images, exact)
    for row in range(5):
        assert np.array_equal(kept.pixels[row].numpy().transpose(0, 2, 1), np.asarray(images.load(row)))


def test_images_are_decoded_into_the_memory_that_they_keep():
    """Of growing sizes, the worst case: no canvas is made and thrown away. (In Python's count; Pillow's is its own.)"""
    values = []
    for side in range(8, 128, 2):
        target = io.BytesIO()
        Image.new("RGB", (side, side), (side, 0, 9)).save(target, "PNG")
        values.append(target.getvalue())
    images = ImageSet([str(row) for row in range(60)], "here", "hash", values)
    tracemalloc.start()
    try:
        kept = decode_all(images, 2**30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept.pixels.shape == (60, 126, 3, 126)
    assert peak < 1.2 * kept.pixels.nbytes
    assert [int(kept.pixels[row, 0, 0, 0]) for row in (0, 59)] == [8, 126]


@pytest.mark.parametrize("at", [0, 3, 6])
def test_one_torn_picture_is_no_matter_of_memory(at):
    """Its head is whole, and says that it is larger than all others together."""
    images, target = image_set(7, broken={5}), io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(target, "PNG")
    images.values[at] = target.getvalue()[:5000]
    assert images.size(at) == (200, 300)
    for limit in (7 * 3 * 14 * 14, 2**30):
        kept = decode_all(images, limit)
        assert kept.pixels.shape == (7, 14, 3, 14)
        assert sorted(kept.unusable) == sorted({at, 5})
    images.values[at] = target.getvalue()
    assert decode_all(images, 7 * 3 * 14 * 14) is None
    assert decode_all(images, 2**30).pixels.shape == (7, 200, 3, 300)


def test_only_the_largest_are_decoded_before_there_is_a_canvas(monkeypatch):
    loaded, load = [], ImageSet.load
    monkeypatch.setattr(
        ImageSet, "load", lambda self, row, covers=None: loaded.append(row) or load(self, row)
    )
    images = image_set(9)
    assert decode_all(images, 9 * 3 * 14 * 14 - 1) is None
    assert loaded == [0]
    decode_all(images, 2**20)
    assert loaded == [0, 0, *range(9)]


def test_a_head_that_tells_another_size_is_no_harm(monkeypatch):
    images = image_set(5)
    kept = decode_all(images, 2**20)
    monkeypatch.setattr(ImageSet, "size", lambda self, row, covers=None: (3, 20))
    again = decode_all(images, 2**20)
    assert again.pixels.shape == (5, 14, 3, 20)
    assert torch.equal(again.pixels[:, :14, :, :14], kept.pixels)
    assert torch.equal(again.sizes, kept.sizes)


@pytest.mark.parametrize(
    ("device", "workers", "cache", "warned"),
    [("cuda", 0, 0, True), ("cuda", 2, 0, False), ("cpu", 0, 0, False), ("cpu", 0, 2**30, False)],
)
def test_a_gpu_that_will_wait_for_images_is_told_of(device, workers, cache, warned):
    told = []
    ImageLoader(
        image_set(5), CROPS, 4, 0, workers=workers, cache_bytes=cache, device=device,
        emit=lambda name, **values: told.append(values["text"]),
    )  # fmt: skip
    assert ["training.workers" in text for text in told] == [True] * warned


def test_large_images_are_kept_small():
    large = image_set(6, side=200)
    loader = ImageLoader(large, CROPS, 4, 0, cache_bytes=6 * 3 * 32 * 32)
    assert loader.cache.pixels.shape == (6, 32, 3, 32)  # twice the global crop
    made = next(iter(loader.epoch(0)))
    on_pillow = next(iter(ImageLoader(large, CROPS, 4, 0, cache_bytes=0).epoch(0)))
    assert torch.equal(made.rows, on_pillow.rows)
    assert (made.views[0] - on_pillow.views[0]).abs().mean() < 0.1


def test_too_few_images(monkeypatch):
    with pytest.raises(InputError, match=r"here: 3 usable images are fewer(.|\n)*training\.batch_size=2"):
        ImageLoader(image_set(4, broken={0}), CROPS, 4, 0)
    with pytest.raises(InputError, match="0 usable images"):
        ImageLoader(image_set(4, broken=range(4)), CROPS, 4, 0)
    monkeypatch.setattr(loader_module, "_MOST_SUBSTITUTES", 1)
    nearly_all = ImageLoader(image_set(4, broken={0, 1, 2}), crop_and_flip((8, 8)), 2, 0, cache_bytes=0)
    with pytest.raises(InputError, match="here: 1 images after each other cannot be used"):
        list(nearly_all.epoch(0))
