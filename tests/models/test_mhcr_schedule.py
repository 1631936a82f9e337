"""Our MHCR against the released schedule of the same formulas (benchmarks/mhcr_released.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import FeatureMatrix
from firstlight.losses.negatives import PairNegatives
from firstlight.losses.ranking import LossConfig, ranking_loss
from firstlight.models.base import Batch
from firstlight.models.mhcr import MHCR, MHCRConfig
from worlds import random_log

YARDSTICK = Path(__file__).resolve().parents[2] / "benchmarks" / "mhcr_released.py"


@pytest.fixture(scope="module")
def yardstick() -> ModuleType:
    if not YARDSTICK.exists():
        pytest.skip("the benchmarks are not beside the tests")
    spec = importlib.util.spec_from_file_location("mhcr_released", YARDSTICK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def world(setting: str) -> tuple[MHCR, Batch]:
    """40 users, 30 items, three views with the norms of the paper's data, double precision; rows repeat."""
    log = random_log(40, 30, 200)
    rng = np.random.default_rng(0)
    views = {}
    for name, width, norm in (("image", 9, 4.0), ("text", 5, 1.0), ("video", 7, 5.0)):
        values = rng.standard_normal((30, width)).astype(np.float32)
        values *= norm / np.linalg.norm(values, axis=1, keepdims=True)
        views[name] = FeatureMatrix(values, np.ones(30, np.bool_))
    config = MHCRConfig.model_validate(
        {"setting": setting, "dim": 8, "hyperedges": 4, "neighbours": 4, "joint_table": 1}
    )
    users, positives = rng.integers(40, size=50), rng.integers(30, size=50)
    negatives = rng.integers(30, size=50)
    batch = Batch(*(torch.from_numpy(rows) for rows in (users, positives, negatives)))
    return MHCR(config, log, torch_stream(0, "init"), views).double(), batch


def our_loss(model: MHCR, batch: Batch, rng: torch.Generator) -> torch.Tensor:
    encoded = model.encode(0, rng)
    rows = len(batch.users)
    users, items = model.vectors(encoded, batch.users, torch.cat([batch.positives, batch.negatives]))
    ones = torch.ones(rows, dtype=users.dtype)
    negatives = PairNegatives(items[rows:], torch.arange(rows)[:, None])
    scores = (users * items[:rows]).sum(dim=1)
    ranking = ranking_loss(LossConfig(name="bpr"), users, scores, negatives, ones, ones).per_row.mean()
    return ranking + sum(model.extra_losses(encoded, batch).values())


@pytest.mark.parametrize("setting", ["released", "paper"])
def test_the_released_schedule_gives_our_loss_and_our_gradients(yardstick, setting):
    """With memberships' noise, dropout and the permutation of the sorted comparison drawn alike."""
    model, batch = world(setting)
    released = yardstick.ReleasedMHCR(model)
    ours = our_loss(model, batch, torch_stream(1, "step"))
    theirs = released.loss(batch, torch_stream(1, "step"))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-10)
    parameters = list(released.own.values())
    mine = torch.autograd.grad(ours, parameters, allow_unused=True)
    yours = torch.autograd.grad(theirs, parameters, allow_unused=True)
    for name, a, b in zip(released.own, mine, yours, strict=True):
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-11), name


def test_the_released_schedule_ranks_by_our_vectors(yardstick):
    """Without the noise that the released code draws in evaluation too, both rank by the same vectors."""
    model, _ = world("released")
    model.config = model.config.model_copy(update={"membership_noise": False})
    released = yardstick.ReleasedMHCR(model)
    with torch.no_grad():
        theirs = released.forward(torch.Generator(), training=False)["z"]
    # Ours without the calibration column; both at the start, where the running statistics are untouched.
    users, items = model.raw_vectors()
    assert torch.allclose(torch.cat([users, items]), theirs, rtol=1e-9, atol=1e-12)
