"""kill -9 at any moment: a writer's answer is a promise, and nothing is ever half there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serving.catalogues import N_ITEMS, TESTS, run_script, small_bundle

#: Start of the scripts that fork. Only children touch polars, whose threads a fork would leave behind.
FORKING = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from firstlight.serving.bundle import Bundle
from serving.catalogues import N_ITEMS, rows, small_bundle

def forked(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    told = b""
    while part := os.read(read, 1 << 16):
        told += part
    os.close(read)
    status = os.waitpid(child, 0)[1]
    return status, json.loads(told) if told else None
"""

#: Kills a writer again and again, and compares what is on disk with what the writer was told.
KILL_LOOP = """
folder = Path(sys.argv[1])
path, chance, acknowledged, between = folder / "bundle", random.Random(5), 1, 0
forked(lambda: small_bundle(folder).version)

def found():
    opened = Bundle.open(path)
    version = opened.version
    assert opened.item_ids()[N_ITEMS:].to_list() == [f"n{v}" for v in range(1, version)]
    assert torch.equal(opened.item_vectors()[N_ITEMS:], torch.cat([rows(1, v) for v in range(1, version)]))
    return [version, len(opened.strays())]

for _ in range(12):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        bundle = Bundle.open(path)
        while True:
            version = bundle.add_items([f"n{bundle.version}"], rows(1, bundle.version))
            os.write(write, version.to_bytes(4, "little"))
    os.close(write)
    told = os.read(read, 4)  # it is at work
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(read, 1 << 16):
        told += part
    os.close(read)
    acknowledged = int.from_bytes(told[-4:], "little")
    status, (version, strays) = forked(found)
    assert version in (acknowledged, acknowledged + 1), (version, acknowledged)
    between += strays > 0 or version > acknowledged
print(acknowledged, between)
"""

#: Dies at the N-th touch of the disk: writes are cut in half, renames and syncs do not happen.
KILL_AT = """
folder, action = Path(sys.argv[1]), sys.argv[2]

def listed(bundle):
    return sorted(entry.item for entry in bundle.recommend("u0", 50))

def doomed(bundle, at):
    count = [0]
    def touch(real, half=None):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == at:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    write_bytes, write_text = Path.write_bytes, Path.write_text
    Path.write_bytes = touch(write_bytes, lambda path, data: write_bytes(path, data[: len(data) // 2]))
    Path.write_text = touch(write_text, lambda path, text, *_: write_text(path, text[: len(text) // 2]))
    Path.replace = touch(Path.replace)
    os.fsync = touch(os.fsync)
    if action == "add":
        bundle.add_items(["second"], rows(1, 2))
    elif action == "remove":
        bundle.remove_items(["i1"])
    else:
        bundle.compact(prune=action == "prune")

def check(place, at):
    opened = Bundle.open(place / "bundle")
    after, before = listed(opened), sorted([*start, "first"])
    changed = {"add": [*before, "second"], "remove": [i for i in before if i != "i1"]}.get(action, before)
    assert opened.version in (2, 3)
    assert after == (sorted(changed) if opened.version == 3 else before), (at, after)
    opened.add_items(["later"], rows(1, 3))  # and life goes on
    opened.compact(prune=True)
    assert opened.strays() == []
    assert listed(Bundle.open(place / "bundle")) == sorted([*after, "later"])
    return opened.version

start = forked(lambda: listed(small_bundle(folder)))[1]
for at in range(1, 200):
    place = folder / str(at)
    def made():
        bundle = small_bundle(place)
        bundle.add_items(["first"], rows(1))
    forked(made)
    died = forked(lambda: doomed(Bundle.open(place / "bundle"), at))[0]
    status, version = forked(lambda: check(place, at))
    assert status == 0, at
    if died == 0:
        assert version == 5
        print(at)
        break
    assert os.WTERMSIG(died) == signal.SIGKILL
"""


def test_sigkill_at_random_moments(tmp_path):
    acknowledged, between = map(int, run_script(FORKING + KILL_LOOP, tmp_path).split())
    assert acknowledged > 12  # work was done,
    assert between > 0  # and some kills fell into the middle of a write


@pytest.mark.slow
@pytest.mark.parametrize(
    "action",
    ["add", *(pytest.param(name, marks=pytest.mark.slow) for name in ("remove", "compact", "prune"))],
)
def test_sigkill_at_every_touch_of_the_disk(tmp_path, action):
    touched = int(run_script(FORKING + KILL_AT, tmp_path, action))
    assert touched > (6 if action in ("add", "remove") else 12)


WRITER = """
import sys
from pathlib import Path
from firstlight.serving.bundle import Bundle
from serving.catalogues import rows
bundle = Bundle.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for step in range(10):
    bundle.add_items([f"{sys.argv[2]}{step}"], rows(1, step))
"""


def test_two_processes_that_write_lose_nothing(tmp_path):
    bundle = small_bundle(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, bundle.folder, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n")
        assert writer.returncode == 0
    assert bundle.reload()
    assert bundle.version == 21
    assert set(bundle.item_ids()[N_ITEMS:]) == {f"{name}{step}" for name in "ab" for step in range(10)}
