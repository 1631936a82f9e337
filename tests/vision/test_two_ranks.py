"""Two Gloo ranks compute what one process computes (specs: mim-refiner §9, 15)."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("two_ranks.py")
#: Rows of the images that cannot be decoded; the script needs an epoch in which both ranks meet some of them.
TORN = {1, 4, 9, 12, 17, 21}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(command: list[str], world: int) -> None:
    """``command`` once for each rank, with the environment that torchrun would give it."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    started = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=900) for process in started] == [0] * world


def picture(shade: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 2 * shade, 255 - shade)).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    pictures = [b"torn" if row in TORN else picture(row) for row in range(26)]
    ids = [f"cover {row}" for row in range(26)]
    pl.DataFrame({"item": ids, "image": pictures}).write_parquet(folder / "torn.parquet")
    for world in (1, 2):
        command = [sys.executable, str(SCRIPT), str(folder / str(world)), str(folder / "torn.parquet")]
        run_ranks(command, world)
    return folder


@pytest.fixture(scope="module")
def results(folder) -> list[dict[str, Tensor]]:
    return [load_file(folder / str(world)) for world in (1, 2)]


def difference(results: list[dict[str, Tensor]], prefix: str) -> float:
    alone, together = results
    assert alone.keys() == together.keys()
    names = [name for name in alone if name.startswith(prefix)]
    assert names
    return max(float((alone[name].double() - together[name].double()).abs().max()) for name in names)


def test_gathering_and_its_gradient(results):
    assert difference(results, "gathered") == 0
    assert difference(results, "transposed") == 0
    assert difference(results, "gradient") < 1e-12


def test_batch_norm_over_ranks(results):
    assert difference(results, "norm.") < 1e-12


@pytest.mark.parametrize("stage", ["heads", "refine"])
def test_losses_gradients_and_state_after_three_updates(results, stage):
    assert difference(results, f"{stage}.loss") < 1e-10
    assert difference(results, f"{stage}.grad") < 1e-10
    assert difference(results, f"{stage}.heads.") < 1e-10  # parameters, statistics and queues
    assert difference(results, f"{stage}.encoder.") < 1e-10
    pushed = results[1][f"{stage}.heads.0.queue.rows"]
    assert torch.equal(pushed, results[0][f"{stage}.heads.0.queue.rows"])
    assert int((pushed >= 0).sum()) > 0


def test_what_every_rank_says_reaches_all(results):
    assert bytes(results[1]["texts"].tolist()).decode() == "ein Bär 🐻" + "x" * 300 + "{}"
    assert torch.equal(results[0]["texts"], results[1]["texts"])
    assert results[1]["flags"].tolist() == [True, False]


def test_images_that_any_rank_could_not_use_are_named(folder):
    alone, together = (json.loads((folder / f"{world}-run" / "result.json").read_text()) for world in (1, 2))
    named = alone["images"]["unusable"]
    assert len(named) >= 4
    assert named.keys() <= {f"cover {row}" for row in TORN}
    assert together["images"]["unusable"] == named
    assert together["last_epoch"]["unusable"] == len(named)
    assert json.loads((folder / "2-run" / "told.json").read_text()) == sorted(named)  # each of them once
