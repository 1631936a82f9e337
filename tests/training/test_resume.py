"""Nothing is lost: interrupted, killed, out of space, read-only; and resuming changes no bit."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from firstlight.core.errors import DivergenceError, FirstlightError, InputError
from firstlight.data.dataset import Dataset
from firstlight.data.folder import write_dataset
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.training import checkpoint as checkpoint_room
from firstlight.training.config import build_config
from firstlight.training.loop import Phase, Progress
from firstlight.training.run import train
from firstlight.training.run_folder import load_run
from worlds import checkerboard, random_log

SMALL = [
    "model.dim=8",
    "training.batch_size=64",
    "training.epochs=6",
    "training.eval_every=1",
    "negatives.count=16",
]


class StopHere(Exception):
    """Stands for whatever interrupts a run."""


def dataset(seed: int = 0) -> Dataset:
    import numpy as np
    import polars as pl

    log = random_log(40, 30, 400, seed)
    held = np.zeros(log.n_pairs, bool)
    held[log.indptr[1:] - 1] = log.user_degrees > 2
    return Dataset(
        "random",
        pl.Series([f"u{i}" for i in range(40)]),
        pl.Series([f"i{i}" for i in range(30)]),
        train=log.select(~held),
        test=log.select(held),
    )


def same_run(first: Path, second: Path) -> None:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["found"]["epochs"] == results[1]["found"]["epochs"]
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (first, second)]
    histories = [[{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in part] for part in lines]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
@pytest.mark.parametrize(
    ("temperature", "form"),
    [("adaptive-user", "held-out"), ("adaptive-user", "mean"), ("learned-user", "mean")],
)
@pytest.mark.parametrize("moment", [("search", 3), ("refit", 2)])
def test_resume_equals_no_interruption(tmp_path, model, temperature, form, moment):
    changes = ["temperature.warmup_epochs=1", f"temperature.form={form}", "training.track_test=true"]
    config = build_config(model=model, temperature=temperature, overrides=[*SMALL, *changes])
    train(dataset(), config, tmp_path / "whole")

    def interrupt(name, **values):
        if name == "step" and (values["phase"], values["epoch"]) == moment:
            raise StopHere

    with pytest.raises(StopHere):
        train(dataset(), config, tmp_path / "cut", emit=interrupt)
    with pytest.raises(InputError, match="did not finish"):
        load_run(tmp_path / "cut")
    train(dataset(), config, tmp_path / "cut", resume=True)
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_watched_refit_cut_before_its_checkpoint_leaves_the_search_its_best_model(tmp_path):
    """What calibrates on validation must not have seen it; the widths of views differ between the two, too."""
    world = simulate(SimulationConfig(n_users=60, n_items=60, mean_clicks=12.0, cover_size=16)).dataset
    data = split_dataset(world, SplitOptions(by="cold-items"))
    changes = [*SMALL, "training.track_test=true", "training.checkpoint_every=20"]
    config = build_config(model="mhcr", overrides=changes)
    whole = train(data, config, tmp_path / "whole")
    kept = whole["found"]["epochs"]

    def interrupt(name, **values):
        if name == "step" and (values["phase"], values["epoch"]) == ("refit", kept + 1):
            raise StopHere

    with pytest.raises(StopHere):
        train(data, config, tmp_path / "cut", emit=interrupt)
    train(data, config, tmp_path / "cut", resume=True)
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_another_process_fills_is_left_alone(tmp_path):
    config = build_config(overrides=SMALL)
    second: list[str] = []

    def meanwhile(name, **values):
        if name == "step" and values["epoch"] == 3 and not second:
            with pytest.raises(InputError, match="another training is at work here") as error:
                train(dataset(), config, tmp_path / "run", resume=True)
            second.append(str(error.value))

    train(dataset(), config, tmp_path / "run", emit=meanwhile)
    assert second
    train(dataset(), config, tmp_path / "alone")
    same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize("selection", ["test", "none"])
def test_other_protocols_resume_too(tmp_path, selection):
    config = build_config(overrides=[*SMALL, f"training.selection={selection}"])
    whole = train(dataset(), config, tmp_path / "whole")
    assert ("LEAKY" in whole["protocol"]["meaning"]) is (selection == "test")

    def interrupt(name, **values):
        if name == "step" and values["epoch"] == 4:
            raise StopHere

    with pytest.raises(StopHere):
        train(dataset(), config, tmp_path / "cut", emit=interrupt)
    train(dataset(), config, tmp_path / "cut", resume=True)
    same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("model", ["mf", "lightgcn", "item-knn", "popularity"])
@pytest.mark.parametrize("refit", ["true", "false"])
def test_a_run_read_back_measures_what_it_reported(tmp_path, model, refit):
    from firstlight.evaluation.ranking import evaluate_ranking

    trains = model in ("mf", "lightgcn")
    config = build_config(model=model, overrides=[*SMALL, f"training.refit={refit}"] if trains else [])
    result = train(dataset(), config, tmp_path / "run")
    said = "no selection" if not trains else "train + validation" if refit == "true" else "train alone"
    assert said in result["protocol"]["meaning"]
    run = load_run(tmp_path / "run")
    seen = [run.seen, *([run.parts["valid"]] if "valid" in run.parts else [])]
    again = evaluate_ranking(run.scorer, run.parts["test"], seen).metrics
    for name in ("recall@20", "ndcg@10", "mrr@50"):
        assert again[name] == result["metrics"][name]
    assert run.per_user["user_id"].to_list() == [f"u{u}" for u in run.per_user["user"]]


def test_resume_never_writes_into_a_folder_that_is_no_run(tmp_path):
    write_dataset(dataset(), tmp_path / "data")
    before = (tmp_path / "data" / "dataset.json").read_bytes()
    with pytest.raises(InputError, match="not a run"):
        train(dataset(), build_config(overrides=SMALL), tmp_path / "data", resume=True)
    assert (tmp_path / "data" / "dataset.json").read_bytes() == before


def test_finished_runs_are_returned_and_others_refused(tmp_path):
    config = build_config(overrides=SMALL)
    first = train(dataset(), config, tmp_path / "run")
    assert train(dataset(), config, tmp_path / "run", resume=True) == first
    with pytest.raises(InputError, match="not empty"):
        train(dataset(), config, tmp_path / "run")
    with pytest.raises(InputError, match="another config or other data"):
        train(dataset(seed=1), config, tmp_path / "run", resume=True)
    other = build_config(overrides=[*SMALL, "model.dim=4"])
    with pytest.raises(InputError, match="another config or other data"):
        train(dataset(), other, tmp_path / "run", resume=True)


KILLED_IN_WRITE = """
import os, signal, sys
from pathlib import Path
from firstlight.training import checkpoint
from firstlight.cli import main
real, count = checkpoint.save_file, [0]
def torn(tensors, path, metadata=None):
    count[0] += 1
    real(tensors, path, metadata)
    if count[0] == int(os.environ["KILL_AT"]):
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = torn
sys.argv = ["firstlight", *sys.argv[1:]]
main()
"""


def arguments(data: Path, out: Path) -> list[str]:
    sets = [
        part
        for text in [*SMALL, "temperature.form=held-out", "training.threads=1"]
        for part in ("--set", text)
    ]
    return ["train", str(data), "--model", "mf", "--loss", "adap-tau", "--out", str(out), *sets]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(dataset(), folder / "data")
    whole = folder / "whole"
    subprocess.run([sys.executable, "-m", "firstlight", *arguments(folder / "data", whole)], check=True)
    return folder / "data", whole


@pytest.mark.parametrize("kill_at", [1, 2, 5])
def test_sigkill_in_the_middle_of_a_write(tmp_path, on_disk, kill_at):
    data, whole = on_disk
    out = tmp_path / "run"
    environment = {**os.environ, "KILL_AT": str(kill_at)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_IN_WRITE, *arguments(data, out)], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "firstlight", *arguments(data, out), "--resume"], check=True)
    same_run(whole, out)


def test_sigkill_at_random_moments(tmp_path, on_disk):
    data, whole = on_disk
    out = tmp_path / "run"
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-m", "firstlight", *arguments(data, out), "--resume"])
        # Starting takes seconds; the draw covers start, training and the final evaluation.
        deadline = time.monotonic() + moments.uniform(1.0, 5.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
    else:
        subprocess.run([sys.executable, "-m", "firstlight", *arguments(data, out), "--resume"], check=True)
    same_run(whole, out)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = build_config(overrides=SMALL)
    train(dataset(), config, tmp_path / "whole")
    real, count = checkpoint_room.save_file, [0]

    def full(tensors, path, metadata=None):
        count[0] += 1
        if count[0] > 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint_room, "save_file", full)
    with pytest.raises(FirstlightError, match=r"disk is full.*(\n.*)*--resume"):
        train(dataset(), config, tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*partial*"))
    monkeypatch.undo()
    train(dataset(), config, tmp_path / "cut", resume=True)
    same_run(tmp_path / "whole", tmp_path / "cut")


FILE_LIMIT = """
import resource, sys
from firstlight.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.argv = ["firstlight", *sys.argv[1:]]
main()
"""


def test_a_write_that_the_system_refuses_is_a_message(tmp_path, on_disk):
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, *arguments(on_disk[0], tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("out", ["/proc/nowhere/run", "file/run"])
def test_a_folder_that_cannot_be_made(tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        train(dataset(), build_config(overrides=SMALL), tmp_path / out)


def test_a_torn_checkpoint_is_named(tmp_path):
    config = build_config(overrides=SMALL)

    def interrupt(name, **values):
        if name == "step" and values["epoch"] == 3:
            raise StopHere

    with pytest.raises(StopHere):
        train(dataset(), config, tmp_path / "run", emit=interrupt)
    state = tmp_path / "run" / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match=r"state\.safetensors"):
        train(dataset(), config, tmp_path / "run", resume=True)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = build_config(overrides=[*SMALL, "training.selection=none"])
    real = Phase._steps
    monkeypatch.setattr(
        Phase, "_steps", lambda self, epoch: float("nan") if epoch == 3 else real(self, epoch)
    )
    with pytest.raises(DivergenceError, match="epoch 4"):
        train(dataset(), config, tmp_path / "run")
    kept = checkpoint_room.load_checkpoint(tmp_path / "run" / "checkpoint" / "state.safetensors", Progress)
    assert kept.progress.epoch == 3


def test_a_model_without_training_runs_through(tmp_path):
    result = train(checkerboard(), build_config(model="popularity"), tmp_path / "run")
    assert result["protocol"]["selection"] == "none"
    run = load_run(tmp_path / "run")
    assert run.scorer.scores(torch.tensor([0])).shape == (1, 20)


def test_tracking_test_is_labelled_and_keeps_the_found_epoch(tmp_path):
    tracked = build_config(overrides=[*SMALL, "training.track_test=true"])
    plain = build_config(overrides=SMALL)
    a, b = train(dataset(), tracked, tmp_path / "a"), train(dataset(), plain, tmp_path / "b")
    assert a["metrics"] == b["metrics"]  # watching test changes nothing of what is reported
    assert "LEAKY" in a["found"]["selected_on_test"]["protocol"]
    assert a["found"]["selected_on_test"]["metrics"]["recall@20"] >= a["metrics"]["recall@20"]
