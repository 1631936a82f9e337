"""The encoder's loop: schedule, optimiser, and a run that goes on bit by bit wherever it was cut."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from firstlight.core.errors import DivergenceError, InputError
from firstlight.training.checkpoint import Checkpoint, load_checkpoint, load_tensors, save_checkpoint
from firstlight.training.encoder_config import EncoderTrainingConfig, build_pretrain_config
from firstlight.training.encoder_loop import EncoderPhase, EncoderProgress
from firstlight.training.encoder_optimiser import GroupAdamW
from firstlight.training.encoder_run import EncoderRun
from firstlight.training.loop import Progress
from firstlight.training.pretrain import _predictor_first, crops_of, pretrain
from firstlight.vision.encoder_file import load_encoder, save_encoder
from firstlight.vision.image_set import ImageSet
from firstlight.vision.images import open_images
from firstlight.vision.mae import MAE
from firstlight.vision.objective import ParameterGroup
from firstlight.vision.pretraining import PretrainObjective
from pretraining import TINY, config, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_images(write_images(tmp_path_factory.mktemp("images") / "images.parquet"))


def same(left, right):
    left, right = (load_tensors(folder / "encoder.safetensors") for folder in (left, right))
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopping_at(step):
    """An emitter that ends the run at its n-th "step" event."""
    count = itertools.count(1)

    def emit(name, **values):
        if name == "step" and next(count) == step:
            raise Stop

    return emit


def test_the_peak_scales_with_the_batch():
    assert EncoderTrainingConfig(base_lr=4e-4, batch_size=1024).peak_lr == pytest.approx(1.6e-3)
    assert EncoderTrainingConfig(base_lr=4e-4, batch_size=512).peak_lr == pytest.approx(8e-4)
    assert EncoderTrainingConfig(epochs=100, warmup_epochs=5).warmup_steps(7) == 35
    assert EncoderTrainingConfig(epochs=10, warmup_epochs=5).warmup_steps(7) == 14  # never over a fifth


def test_groups_have_their_own_rate_and_decay():
    weights = {name: torch.nn.Parameter(torch.full((3,), 2.0)) for name in ("fast", "slow", "free", "idle")}
    groups = [
        ParameterGroup("fast", [weights["fast"]], 1.0, None),
        ParameterGroup("slow", [weights["slow"]], 0.5, 0.1),
        ParameterGroup("free", [weights["free"], weights["idle"]], 1.0, 0.0),
    ]
    optimiser = GroupAdamW(groups, (0.9, 0.95), 0.3)
    for name in ("fast", "slow", "free"):
        weights[name].grad = torch.ones(3)
    optimiser.step(0.01)
    # The first step of Adam is the sign of the gradient; the decay is taken off before it.
    assert weights["fast"][0].item() == pytest.approx(2 * (1 - 0.01 * 0.3) - 0.01, abs=1e-6)
    assert weights["slow"][0].item() == pytest.approx(2 * (1 - 0.005 * 0.1) - 0.005, abs=1e-6)
    assert weights["free"][0].item() == pytest.approx(2 - 0.01, abs=1e-6)
    assert weights["idle"][0].item() == 2.0
    with pytest.raises(ValueError, match="two groups"):
        GroupAdamW([groups[0], ParameterGroup("again", [weights["fast"]])], (0.9, 0.95), 0.0)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nothing cut."""
    out = tmp_path_factory.mktemp("whole") / "enc"
    result = pretrain(images, config(images), out)
    return out, result


def test_a_run_leaves_a_whole_folder(images, whole):
    out, result = whole
    assert result["images"]["count"] == 26
    assert result["images"]["unusable"] == {}
    assert result["last_epoch"]["epoch"] == 3
    assert [line["epoch"] for line in metrics(out)] == [1, 2, 3]
    encoder = load_encoder(out)
    assert encoder.pooling == "class"
    assert encoder.history[-1]["epochs"] == 3
    assert torch.isfinite(encoder.features(encoder.prepare(images.load(0))[None])).all()
    for name in ("config.yaml", "environment.json", "result.json", "checkpoint/state.safetensors"):
        assert (out / name).is_file()
    assert pretrain(images, config(images), out, resume=True) == json.loads((out / "result.json").read_text())


def test_a_run_repeats_and_a_seed_changes_it(images, whole, tmp_path):
    pretrain(images, config(images), tmp_path / "again")
    assert same(whole[0], tmp_path / "again")
    pretrain(images, config(images, "training.seed=1"), tmp_path / "other")
    assert not same(whole[0], tmp_path / "other")


@pytest.mark.parametrize("minutes", ["10", "1e-9"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_resume_is_bit_exact(images, whole, tmp_path, step, minutes):
    """Cut at several places, with checkpoints between epochs only and with one after every step."""
    changed = config(images, f"training.checkpoint_minutes={minutes}")
    with pytest.raises(Stop):
        pretrain(images, changed, tmp_path / "enc", emit=stopping_at(step))
    told = []
    pretrain(
        images, changed, tmp_path / "enc", resume=True,
        emit=lambda name, **values: told.append(values.get("text")),
    )  # fmt: skip
    assert same(whole[0], tmp_path / "enc")
    assert metrics(whole[0]) == metrics(tmp_path / "enc")
    continued = [text for text in told if text and text.startswith("continuing")]
    assert bool(continued) == (step > 1)


def test_i_jepa_in_the_same_loop(images, tmp_path):
    small = [
        "ijepa.predictor_dim=16",
        "ijepa.predictor_heads=2",
        "ijepa.predictor_depth=1",
        "ijepa.min_context=4",
    ]
    settings = build_pretrain_config(images, objective="i-jepa", overrides=[*TINY, *small])
    assert not settings.encoder.class_token
    for name, stop in (("whole", 99), ("cut", 2)):
        try:
            pretrain(images, settings, tmp_path / name, emit=stopping_at(stop))
        except Stop:
            pretrain(images, settings, tmp_path / name, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert metrics(tmp_path / "whole")[-1]["target_std"] > 0
    assert load_encoder(tmp_path / "cut").pooling == "mean"
    pretrain(images, settings, tmp_path / "more", start=tmp_path / "cut")
    assert len(load_encoder(tmp_path / "more").history) == 2


def test_killed_in_the_middle(images, whole, tmp_path):
    """A process that is shot leaves a folder to go on from, whatever it was doing."""
    out = tmp_path / "enc"
    changes = [word for change in [*TINY, "training.checkpoint_minutes=1e-9"] for word in ("--set", change)]
    command = [sys.executable, "-m", "firstlight", "pretrain", images.source, "--out", str(out), *changes]
    slow = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not (out / "checkpoint" / "state.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    pretrain(images, config(images, "training.checkpoint_minutes=1e-9"), out, resume=True)
    assert same(whole[0], out)
    assert not list(out.rglob(".*.partial*"))


def test_two_ranks_equal_one_process(images, whole, tmp_path):
    """Under the environment of torchrun: the same losses, weights that moved the same way, and one answer.

    The gradient of a key's bias is zero but for rounding, which AdamW blows up to full steps; those are left out.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    words = ["pretrain", images.source, "--out", str(tmp_path / "enc"), "--json"]
    words += [word for change in TINY for word in ("--set", change)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "firstlight", *words],
            env=os.environ | address | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert json.loads(answers[0])["last_epoch"]["epoch"] == 3
    assert answers[1] == ""
    for one, two in zip(metrics(whole[0]), metrics(tmp_path / "enc"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    alone, together = (
        load_tensors(folder / "encoder.safetensors") for folder in (whole[0], tmp_path / "enc")
    )
    for name in alone:
        if not name.endswith("attn.qkv.bias"):
            assert torch.allclose(alone[name], together[name], atol=2e-4), name


def test_checkpoints_of_both_loops_are_the_files_they_were(tmp_path):
    """Written by hand, as they lie in the folders of runs that were begun long ago."""
    tensors, shared = (
        {"objective.x": torch.arange(3.0)},
        {"phase": "p", "run_hash": "h", "carried": '{"a": 1}'},
    )
    encoder = {"epoch": 2, "step": 3, "sums": {"loss": 0.5}, "seconds": 1.5, "history": [{"epoch": 1}]}
    other = {"epoch": 2, "best": 0.1, "best_epoch": 1, "bad": 0, "seconds": 1.5, "history": []}
    for kind, note, values in (
        (EncoderProgress, "encoder_progress", encoder),
        (Progress, "progress", other),
    ):
        path = tmp_path / f"{note}.safetensors"
        save_file(tensors, path, shared | {note: json.dumps(values)})
        found = load_checkpoint(path, kind)
        assert (found.phase, found.run_hash, found.carried) == ("p", "h", {"a": 1})
        assert found.progress == kind(**values)
        assert torch.equal(found.tensors["objective.x"], torch.arange(3.0))
        save_checkpoint(
            tmp_path / "again.safetensors", Checkpoint("p", "h", kind(**values), {"a": 1}, tensors)
        )
        with safe_open(tmp_path / "again.safetensors", framework="pt") as handle:
            written = handle.metadata()
        assert written.keys() == {*shared, note}
        assert json.loads(written[note]) == values
    with pytest.raises(InputError, match="not a checkpoint of an encoder"):
        load_checkpoint(tmp_path / "progress.safetensors", EncoderProgress)
    with pytest.raises(InputError, match="not a checkpoint of a recommender"):
        load_checkpoint(tmp_path / "encoder_progress.safetensors", Progress)


def test_threads_and_workers_are_no_other_run(images, tmp_path):
    slow = config(images, "training.cache_mb=0")
    with pytest.raises(Stop):
        pretrain(images, slow, tmp_path / "enc", emit=stopping_at(2))
    pretrain(
        images, config(images, "training.cache_mb=0", "training.workers=2"), tmp_path / "enc", resume=True
    )
    pretrain(images, slow, tmp_path / "straight")
    assert same(tmp_path / "enc", tmp_path / "straight")


def test_what_cannot_be_resumed_is_said(images, whole, tmp_path):
    out = whole[0]
    with pytest.raises(InputError, match="not empty"):
        pretrain(images, config(images), out)
    with pytest.raises(InputError, match="another config or other images"):
        pretrain(images, config(images, "training.epochs=4"), out, resume=True)
    with pytest.raises(Stop):
        pretrain(images, config(images), tmp_path / "enc", emit=stopping_at(2))
    fewer = ImageSet(images.ids, images.source, "another hash", images.values)
    with pytest.raises(InputError, match="another config or other images"):
        pretrain(fewer, config(images), tmp_path / "enc", resume=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something that is not a run"):
        pretrain(images, config(images), tmp_path / "else", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_starts_in_one_folder_the_second_changes_nothing(images, tmp_path, resume):
    """Both found it free; the second comes while the first trains, and once more when it has left."""
    out = tmp_path / "enc"
    first, second = (
        EncoderRun(out, "pretrain", config(images, f"training.seed={seed}"), images, resume=resume)
        for seed in (1, 2)
    )
    assert not out.exists()
    with first.held():
        begun = (out / "config.yaml").read_text()
        with pytest.raises(InputError, match="another training is at work"), second.held():
            pass
        assert (out / "config.yaml").read_text() == begun
        (out / "result.json").write_text("{}")
    message = "trained here meanwhile" if resume else "not empty"
    with pytest.raises(InputError, match=message), second.held():
        pass
    assert (out / "config.yaml").read_text() == begun


@pytest.mark.parametrize("resume", [False, True])
def test_a_lock_alone_is_no_run(images, tmp_path, resume):
    """What a process leaves that was killed before it wrote anything."""
    (tmp_path / ".lock").touch()
    with EncoderRun(tmp_path, "pretrain", config(images), images, resume=resume).held():
        assert (tmp_path / "config.yaml").is_file()


def test_a_broken_image_is_counted_in_a_resumed_run_too(tmp_path):
    found = open_images(write_images(tmp_path / "images.parquet", broken={3, 9}))
    for cache in ("0", "100"):
        out, told = tmp_path / f"enc{cache}", []
        changed = config(found, f"training.cache_mb={cache}")
        with pytest.raises(Stop):
            pretrain(found, changed, out, emit=stopping_at(2))
        result = pretrain(
            found, changed, out, resume=True, emit=lambda name, told=told, **values: told.append(name)
        )
        assert sorted(result["images"]["unusable"]) == ["cover 3", "cover 9"]
        assert all("cannot be decoded" in reason for reason in result["images"]["unusable"].values())
        assert metrics(out)[-1]["unusable"] == 2


def read_late(monkeypatch):
    """Read losses as on a GPU: not each step."""
    start = EncoderPhase.__init__

    def late(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self._reads_each = False

    monkeypatch.setattr(EncoderPhase, "__init__", late)


def test_losses_read_late_are_the_same(images, whole, tmp_path, monkeypatch):
    read_late(monkeypatch)
    pretrain(images, config(images), tmp_path / "enc")
    assert same(tmp_path / "enc", whole[0])
    for mine, theirs in zip(metrics(tmp_path / "enc"), metrics(whole[0]), strict=True):
        assert mine["loss"] == theirs["loss"]


@pytest.mark.parametrize("late", [False, True])
def test_divergence_names_the_cause_and_keeps_the_checkpoint(images, tmp_path, monkeypatch, late):
    if late:
        read_late(monkeypatch)
    changed = config(images)
    before = MAE.loss
    count = itertools.count(1)

    def poisoned(self, batch, rng):
        losses = before(self, batch, rng)
        return losses if next(count) < 5 else {"reconstruction": losses["reconstruction"] * float("nan")}

    monkeypatch.setattr(MAE, "loss", poisoned)
    with pytest.raises(
        DivergenceError, match=r"epoch 2 of phase pretrain(.|\n)*step 2(.|\n)*training\.base_lr"
    ):
        pretrain(images, changed, tmp_path / "enc")
    assert load_encoder(tmp_path / "enc").history
    state = load_tensors(tmp_path / "enc" / "checkpoint" / "state.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_going_on_from_an_encoder(images, whole, tmp_path):
    start = load_encoder(whole[0])
    still = ["training.epochs=1", "training.base_lr=1e-12", "training.end_lr=0"]
    short = build_pretrain_config(images, overrides=[*TINY[5:], *still], start=start.vit.config)
    assert short.encoder == start.vit.config
    pretrain(images, short, tmp_path / "more", start=whole[0])
    more = load_encoder(tmp_path / "more")
    assert len(more.history) == 2
    for a, b in zip(more.vit.parameters(), start.vit.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-8)  # at no speed, it stays where it began
    assert metrics(tmp_path / "more")[0]["loss"] < metrics(whole[0])[0]["loss"]  # the decoder came along
    with pytest.raises(InputError, match="another shape"):
        pretrain(images, config(images, "encoder.dim=32"), tmp_path / "no", start=whole[0])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("objective", ["mae", "i-jepa"])
def test_what_predicts_learns_first_where_it_did_not_come_along(
    images, whole, tmp_path, objective, monkeypatch
):
    known = load_encoder(whole[0])
    save_encoder(tmp_path / "bare", known)  # as a checkpoint of others: the encoder alone
    states = []
    run = EncoderPhase.run

    def watched(self, checkpoint=None):
        copies = [{k: v.clone() for k, v in self.objective.state_dict().items()}]
        run(self, checkpoint)
        copies.append({k: v.clone() for k, v in self.objective.state_dict().items()})
        states.append((self.name, self.progress.epoch, *copies))

    monkeypatch.setattr(EncoderPhase, "run", watched)
    overrides = [*TINY[5:], "training.epochs=4", "ijepa.predictor_dim=16", "ijepa.predictor_heads=2"]
    changed = build_pretrain_config(images, objective=objective, overrides=overrides, start=known.vit.config)
    pretrain(images, changed, tmp_path / "more", start=tmp_path / "bare")
    assert [(name, epochs) for name, epochs, *_ in states] == [("predictor", 4), ("pretrain", 4)]
    (_, _, before, after), (_, _, then, end) = states
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == (not name.startswith(("encoder.", "target."))), name
        assert torch.equal(after[name], then[name]), name
    fixed = "encoder.pos_embed"
    assert all(not torch.equal(then[n], end[n]) for n in end if n.startswith("encoder.") and n != fixed)
    assert torch.equal(then[fixed], end[fixed])
    assert load_encoder(tmp_path / "more").history[-1]["epochs"] == 4
    assert [line["phase"] for line in metrics(tmp_path / "more")] == 4 * ["predictor"] + 4 * ["pretrain"]
    states.clear()
    pretrain(images, config(images), tmp_path / "along", start=whole[0])  # its decoder comes along
    none = config(images, "predictor_epochs=0")
    pretrain(images, none, tmp_path / "none", start=tmp_path / "bare")
    asked = config(images, "predictor_epochs=1", "training.epochs=1")
    pretrain(images, asked, tmp_path / "asked")
    assert [name for name, *_ in states] == ["pretrain", "pretrain", "predictor", "pretrain"]


def test_nothing_is_first_where_nothing_learns_beside_the_encoder(images, whole):
    encoder = load_encoder(whole[0]).vit
    moving = [parameter.requires_grad for parameter in encoder.parameters()]
    unused = None  # neither run nor images are touched
    _predictor_first(unused, PretrainObjective(encoder), unused, config(images))
    assert [parameter.requires_grad for parameter in encoder.parameters()] == moving
    assert any(moving)


@pytest.mark.parametrize("step", range(1, 8))
def test_resume_is_bit_exact_where_what_predicts_learns_first(images, tmp_path, step):
    changed = config(images, "predictor_epochs=2", "training.epochs=2", "training.checkpoint_minutes=1e-9")
    pretrain(images, changed, tmp_path / "whole")
    with contextlib.suppress(Stop):
        pretrain(images, changed, tmp_path / "enc", emit=stopping_at(step))
    pretrain(images, changed, tmp_path / "enc", resume=True)
    assert same(tmp_path / "whole", tmp_path / "enc")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "enc")


def test_what_goes_with_an_encoder_goes_on_with_it(images, whole, tmp_path):
    """Licence, pixel statistics, pooling and crop belong to the weights, wherever they are trained next."""
    known = load_encoder(whole[0])
    known = replace(
        known, licence="CC BY-NC 4.0", mean=(0.5,) * 3, std=(0.25,) * 3, pooling="mean", crop=0.875
    )
    save_encoder(tmp_path / "known", known)
    short = config(images, "training.epochs=1")
    assert (crops_of(short, known).mean, crops_of(short, known).std) == (known.mean, known.std)
    pretrain(images, short, tmp_path / "more", start=tmp_path / "known")
    more = load_encoder(tmp_path / "more")
    for name in ("licence", "mean", "std", "pooling", "crop"):
        assert getattr(more, name) == getattr(known, name), name
    assert len(more.history) == 2


@pytest.mark.parametrize("usual", [True, False])
def test_a_run_under_other_pixel_statistics_does_not_go_on(images, whole, tmp_path, usual):
    """As they were begun when crops kept their own; where the encoder has the same, a run's hash is what it was."""
    known, two = load_encoder(whole[0]), config(images, "training.epochs=2")
    assert (known.mean, known.std) == (crops_of(two).mean, crops_of(two).std)
    if not usual:
        known = replace(known, mean=(0.5,) * 3)
    start, out = tmp_path / "known", tmp_path / "more"
    save_encoder(start, known)
    with pytest.raises(Stop):
        pretrain(images, two, out, start=start, emit=stopping_at(2))
    before = EncoderRun(tmp_path / "new", "pretrain", two, images, inputs=(known.state_hash(),)).hash
    state = out / "checkpoint" / "state.safetensors"
    begun = load_checkpoint(state, EncoderProgress)
    assert (begun.run_hash == before) == usual
    save_checkpoint(state, replace(begun, run_hash=before))
    if usual:
        assert pretrain(images, two, out, start=start, resume=True)
        return
    with pytest.raises(InputError, match="another config or other images"):
        pretrain(images, two, out, start=start, resume=True)
    save_checkpoint(state, begun)
    assert pretrain(images, two, out, start=start, resume=True)
