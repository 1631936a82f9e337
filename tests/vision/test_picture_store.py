"""Pictures laid out on disk: the same bytes from any process, little memory, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import FirstlightError, InputError
from firstlight.vision import image_tables, picture_store
from firstlight.vision.images import open_images
from firstlight.vision.picture_store import PictureStore, store_pictures

PICTURES = [b"one", None, "covers/zwei é.png", b"", b"\x00\xff" * 500, "", b"last"]
READ = [b"one", None, "covers/zwei é.png", None, b"\x00\xff" * 500, None, b"last"]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """A temporary folder of the test's own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("held", [10**6, 0, 10])
def test_what_was_laid_out_is_read(scratch, held):
    store = store_pictures(iter(PICTURES), held)
    assert len(left(scratch)) == (held < 10**6)
    assert list(store) == READ
    assert store[-1] == b"last"
    with pytest.raises(IndexError):
        store[len(PICTURES)]
    assert list(store.select(np.array([6, 1, 4, 0]))) == [READ[6], None, READ[4], READ[0]]
    assert list(store_pictures([], held)) == []


def test_the_file_goes_with_the_last_store_that_reads_it(scratch):
    store = store_pictures(PICTURES, 0)
    part = store.select(np.array([0, 6]))
    del store
    gc.collect()
    assert list(part) == [b"one", b"last"]
    del part
    gc.collect()
    assert left(scratch) == []


def read_row(store: PictureStore, row: int) -> bytes | str | None:
    return store[row]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it_and_leave_it_there(scratch, method):
    store = store_pictures([bytes([row]) * 9999 for row in range(100)], 0)
    assert len(pickle.dumps(store)) < 5000
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(read_row, [(store, row) for row in range(0, 100, 7)])
        pool.close()
        pool.join()
    assert found == [bytes([row]) * 9999 for row in range(0, 100, 7)]
    assert store[5] == bytes([5]) * 9999  # the children are gone, the file is not
    copy = pickle.loads(pickle.dumps(store))
    del copy
    gc.collect()
    assert len(left(scratch)) == 1


def test_threads_do_not_meet():
    store = store_pictures([bytes([row]) * (row + 1) for row in range(200)], 0)
    rows = np.random.default_rng(0).integers(0, 200, 2000).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store.__getitem__, rows))
    assert found == [bytes([row]) * (row + 1) for row in rows]


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(scratch, monkeypatch):
    code = (
        "import sys, time\n"
        "from firstlight.vision.picture_store import store_pictures\n"
        "store = store_pictures([b'x' * 100], 0)\n"
        "print('made', flush=True)\n"
        "time.sleep(600)\n"
    )
    alive, killed = (
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    try:
        assert {alive.stdout.readline(), killed.stdout.readline()} == {"made\n"}
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        own = store_pictures([b"y"], 0)
        assert len(left(scratch)) == 3  # the file of the dead one is too young to be sure of
        monkeypatch.setattr(picture_store, "_SETTLED_SECONDS", -1)
        more = store_pictures([b"z"], 0)
        assert len(left(scratch)) == 3
        assert (own[0], more[0]) == (b"y", b"z")
    finally:
        for process in (alive, killed):
            process.kill()
            process.wait()


def test_a_temporary_folder_that_cannot_take_it_is_named(scratch, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere: the pictures cannot be laid out(.|\n)*TMPDIR"):
        store_pictures([b"x" * 100], 10)
    assert list(store_pictures([b"x"], 10)) == [b"x"]


def test_a_file_that_was_cut_is_said(scratch):
    store = store_pictures([b"x" * 100, b"y" * 100], 0)
    os.truncate(next(scratch.iterdir()), 150)
    assert store[0] == b"x" * 100
    with pytest.raises(FirstlightError, match="cut off"):
        store[1]


def write_table(path: Path, n: int, size: int, **options) -> list[bytes]:
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(size) for _ in range(n)]
    frame = pl.DataFrame({"item": [f"i{row}" for row in range(n)], "cover": pictures})
    frame.write_parquet(path, **options)
    return pictures


def held_by_python(path: Path) -> tuple[int, int]:
    """Bytes of Python objects while an image set is opened and when it is there."""
    tracemalloc.start()
    images = open_images(path)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 400
    return peak, now


def test_images_of_a_parquet_file_are_not_held(tmp_path, monkeypatch):
    """12 MB of pictures; polars' own memory is measured by benchmarks/picture_memory.py."""
    write_table(tmp_path / "x.parquet", 400, 30_000, row_group_size=50)
    monkeypatch.setattr(image_tables, "store_pictures", lambda pictures: store_pictures(pictures, 10**6))
    peak, now = held_by_python(tmp_path / "x.parquet")
    assert peak < 6 * 10**6  # some pictures as Python has them, and what is held until it goes to disk
    assert now < 3 * 10**6
    monkeypatch.setattr(image_tables, "store_pictures", lambda pictures: store_pictures(pictures, 10**9))
    assert held_by_python(tmp_path / "x.parquet")[1] > 12 * 10**6  # the measure sees what is held


@pytest.mark.parametrize("rows", [None, 7])
def test_images_on_disk_are_those_in_memory(tmp_path, monkeypatch, rows):
    """Same order, ids, hash and bytes; of a part of the file, and of several files, too."""
    for name in ("a", "b"):
        rng = np.random.default_rng(len(name))
        pictures = [None if row % 5 == 2 else rng.bytes(100 + row) for row in range(30)]
        part = ["train" if row % 3 else "test" for row in range(30)]
        frame = pl.DataFrame({"item": [f"{name}{row}" for row in range(30)], "split": part, "jpeg": pictures})
        (tmp_path / "set").mkdir(exist_ok=True)
        frame.write_parquet(tmp_path / "set" / f"{name}.parquet", row_group_size=rows)
    for split in (None, "test"):
        held = open_images(tmp_path / "set", split=split)
        monkeypatch.setattr(image_tables, "store_pictures", lambda pictures: store_pictures(pictures, 0))
        laid_out = open_images(tmp_path / "set", split=split)
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        assert held.ids == laid_out.ids
        assert held.content_hash == laid_out.content_hash
        assert (held.missing, list(held.values)) == (laid_out.missing, list(laid_out.values))
        assert len(held) + held.missing == (60 if split is None else 20)
        pairs = dict(zip(held.ids, held.values, strict=True))
        frame = pl.read_parquet(tmp_path / "set")
        expected = {i: p for i, s, p in frame.rows() if p is not None and s in (split or s)}
        assert pairs == expected


def test_covers_follow_the_items_not_the_rows_of_their_table(tmp_path):
    """Items stand in the order of a sorted log; covers in that of their table."""
    pictures = write_table(tmp_path / "items.parquet", 12, 50)
    log = {"user": ["u", "u", "v"], "item": ["i11", "i3", "i0"]}
    pl.DataFrame(log).write_parquet(tmp_path / "interactions.parquet")
    found = open_images(tmp_path)
    assert sorted(found.ids) == sorted(f"i{row}" for row in range(12))
    assert found.ids != [f"i{row}" for row in range(12)]
    assert [pictures[int(name[1:])] for name in found.ids] == list(found.values)
