"""Content in a run: what is refused, where the offset of cold items comes from, what is read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from firstlight.core.errors import InputError
from firstlight.data.catalogue import Catalogue
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.evaluation.calibration import fit_offset, offset_curve
from firstlight.training.config import build_config
from firstlight.training.run import train
from firstlight.training.run_folder import ModelScorer, load_run, run_hash
from firstlight.training.selection import validation_pool

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


def test_the_calibration_says_what_its_own_offset_reaches(world, tmp_path):
    """Under a metric over all targets the offset is a share of the fitted one; the figures beside it are its own."""
    data = split_dataset(world, SplitOptions(by="cold-items"))
    cold = data.train.item_degrees == 0
    few = ~cold[data.valid.items] | (np.arange(data.valid.n_pairs) % 10 == 0)  # a tenth of the cold targets
    data = replace(data, valid=data.valid.select(few))
    config = build_config(model="mhcr", overrides=[*QUICK, "training.refit=false"])
    found = train(data, config, tmp_path / "run")["found"]["calibration"]
    run = load_run(tmp_path / "run")
    run.model.calibrate(1.0, 0.0)
    pool = validation_pool(data)
    there = offset_curve(ModelScorer(run.model), data.valid, [data.train], cold, [found["offset"]], pool=pool)
    full = fit_offset(ModelScorer(run.model), data.valid, [data.train], cold, pool=pool)
    assert found["offset"] != full.offset  # else this tells nothing
    for kind in ("warm", "cold", "harmonic"):
        assert found[kind] == pytest.approx(float(getattr(there, kind)[0]))


def of_kind(data, cold):
    """``data`` with only the warm, or only the cold targets of validation."""
    kept = data.valid.select((data.train.item_degrees[data.valid.items] == 0) == cold)
    return replace(data, valid=kept)


@pytest.mark.parametrize("cold", [False, True])
def test_validation_of_one_kind(world, tmp_path, cold):
    """A metric over the other kind, or both, is refused before there is a folder; one over this kind does."""
    data = of_kind(split_dataset(world, SplitOptions(by="cold-items")), cold)
    mine, other = ("cold", "warm") if cold else ("warm", "cold")
    for metric in (f"{other}-recall@20", "harmonic-recall@20"):
        config = build_config(model="mhcr", overrides=[*QUICK, f"training.metric={metric}"])
        with pytest.raises(InputError, match=f"wants {other} validation targets"):
            train(data, config, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
    for metric in (f"{mine}-recall@20", "recall@20"):
        config = build_config(model="mhcr", overrides=[*QUICK, f"training.metric={metric}"])
        found = train(data, config, tmp_path / metric)["found"]
        assert found["best_valid"] > 0
        assert found["calibration"]["rehearsed"] is not cold
        if cold:  # no warm target: nothing to weigh cold scores against
            assert not found["calibration"]["fitted"]
            assert found["calibration"]["warm"] is None


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


def test_a_run_with_other_covers_is_another_run(world, tmp_path):
    """Their bytes may be files beside the table."""
    (tmp_path / "a.png").write_bytes(b"first")
    items = world.catalogue.items.with_columns(cover=pl.lit("a.png"))
    named = replace(world, source=str(tmp_path), catalogue=Catalogue(items, world.catalogue.features))
    reads, reads_not = (build_config(model=name) for name in ("mhcr", "mf"))
    before = run_hash(reads, named), run_hash(reads_not, named)
    (tmp_path / "a.png").write_bytes(b"another")
    assert run_hash(reads, named) != before[0]
    assert run_hash(reads_not, named) == before[1]
    (tmp_path / "a.png").unlink()
    assert run_hash(reads, named) != before[0]


def test_a_run_with_another_sentence_encoder_is_another_run(world, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    reads, reads_not = (
        build_config(model=name, overrides=[f"views.sentence.path={tmp_path}"]) for name in ("mhcr", "mf")
    )
    before = run_hash(reads, world), run_hash(reads_not, world)
    (tmp_path / "config.json").write_text('{"layers": 2}')
    assert run_hash(reads, world) != before[0]
    assert run_hash(reads_not, world) == before[1]
