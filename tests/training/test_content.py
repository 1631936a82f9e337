"""Content in a run: what is refused, where the offset of cold items comes from, what is read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.training.config import build_config
from firstlight.training.run import train
from firstlight.training.run_folder import load_run, run_hash

WORLD = SimulationConfig(n_users=120, n_items=80, mean_clicks=24.0, cover_size=16)
QUICK = ["model.dim=8", "training.epochs=4", "training.eval_every=2", "training.batch_size=64"]


@pytest.fixture(scope="module")
def world():
    return simulate(WORLD).dataset


@pytest.mark.parametrize(("by", "rehearsed"), [("cold-items", False), ("random", True)])
@pytest.mark.parametrize("refit", [True, False])
def test_the_offset_is_fitted_on_cold_items_or_rehearsed_on_warm_ones(world, tmp_path, by, rehearsed, refit):
    data = split_dataset(world, SplitOptions(by=by))
    config = build_config(model="mhcr", overrides=[*QUICK, f"training.refit={str(refit).lower()}"])
    found = train(data, config, tmp_path / "run")["found"]["calibration"]
    assert found["rehearsed"] is rehearsed
    model = load_run(tmp_path / "run").model
    assert float(model.cold_offset) == pytest.approx(found["offset"] if found["fitted"] else 0.0)


def test_a_run_read_back_scores_as_before(world, tmp_path):
    data = split_dataset(world, SplitOptions(by="cold-items"))
    train(data, build_config(model="mhcr", overrides=QUICK), tmp_path / "run")
    first, second = (load_run(tmp_path / "run").scorer.vectors() for _ in range(2))
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True))


def test_a_refused_run_leaves_no_folder(world, tmp_path):
    bare = replace(world, catalogue=Catalogue())
    with pytest.raises(InputError, match="no text, no cover and no feature"):
        train(bare, build_config(model="mhcr", overrides=QUICK), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="no view 'txt'"):
        train(world, build_config(model="mhcr", overrides=[*QUICK, "views.use=[txt]"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_sentence_encoder_is_another_run(world, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    reads, reads_not = (
        build_config(model=name, overrides=[f"views.sentence.path={tmp_path}"]) for name in ("mhcr", "mf")
    )
    before = run_hash(reads, world), run_hash(reads_not, world)
    (tmp_path / "config.json").write_text('{"layers": 2}')
    assert run_hash(reads, world) != before[0]
    assert run_hash(reads_not, world) == before[1]
