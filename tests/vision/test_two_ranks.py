"""Two Gloo ranks compute what one process computes (specs: mim-refiner §9, 15)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("two_ranks.py")


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


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    for world in (1, 2):
        run_ranks([sys.executable, str(SCRIPT), str(folder / str(world))], world)
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
