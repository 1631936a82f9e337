"""A training that starts from another run: ids keep their rows, new ones are placed, and quality comes sooner."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from firstlight.cli.app import call
from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset
from firstlight.data.folder import write_dataset
from firstlight.data.interactions import Interactions
from firstlight.data.simulate import SimulationConfig, simulate
from firstlight.data.split import SplitOptions, split_dataset
from firstlight.models.base import build_model
from firstlight.training.config import build_config
from firstlight.training.content import fit_content
from firstlight.training.run import train
from firstlight.training.run_folder import load_run
from firstlight.training.warm_start import WarmStart

COMMON = [
    "training.threads=1",
    "training.batch=users",
    "training.batch_size=64",
    "training.lr=0.01",
    "training.eval_every=1",
    "training.patience=50",
    "training.refit=false",
    "model.dim=16",
]
CONFIGS = {
    "mf": build_config(model="mf", loss="softmax", temperature="fixed:0.2", negatives="all",
                       overrides=[*COMMON, "training.epochs=16"]),
    "lightgcn": build_config(model="lightgcn", loss="softmax", temperature="fixed:0.2", negatives="all",
                             overrides=[*COMMON, "training.epochs=12", "model.layers=2"]),
    "mhcr": build_config(model="mhcr", loss="softmax", temperature="fixed:0.2", negatives="all",
                         overrides=[*COMMON, "training.epochs=8"]),
    "tower": build_config(model="tower", loss="softmax", temperature="fixed:0.2", negatives="all",
                          overrides=[*COMMON, "training.epochs=8"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def days():
    """Today and tomorrow of one world; tomorrow has more clicks, users and items, and other rows."""
    world = simulate(SimulationConfig(n_users=300, n_items=150, mean_clicks=24.0, cover_size=16))
    tomorrow = split_dataset(world.dataset, SplitOptions(by="random"))
    rng = np.random.default_rng(3)
    users, items = rng.permutation(300)[:255], rng.permutation(150)[:130]
    early = tomorrow.train.times < np.quantile(tomorrow.train.times, 0.85)
    return _part(tomorrow, users, items, early), tomorrow


def _part(whole: Dataset, users, items, chosen) -> Dataset:
    places = []
    for rows, n in ((users, whole.n_users), (items, whole.n_items)):
        place = np.full(n, -1)
        place[rows] = np.arange(len(rows))
        places.append(place)
    parts = {}
    for name, part in whole.parts.items():
        kept = part.select(chosen) if name == "train" else part
        kept = kept.select((places[0][kept.users] >= 0) & (places[1][kept.items] >= 0))
        at = places[0][kept.users], places[1][kept.items]
        parts[name] = Interactions.from_pairs(*at, len(users), len(items))
    catalogue = Catalogue(
        whole.catalogue.items[items],
        {
            k: FeatureMatrix(m.values[items], m.present[items], m.extractor)
            for k, m in whole.catalogue.features.items()
        },
    )
    ids = whole.user_ids.gather(users), whole.item_ids.gather(items)
    return Dataset("today", *ids, parts["train"], parts["valid"], parts["test"], catalogue)


@pytest.fixture(scope="module", params=list(CONFIGS))
def today(request, days, tmp_path_factory):
    out = tmp_path_factory.mktemp("today") / request.param
    train(days[0], CONFIGS[request.param], out)
    return load_run(out), CONFIGS[request.param]


def started(run, config, tomorrow, log=None):
    start = WarmStart(run, config, tomorrow)
    content = start.content() or fit_content(config, tomorrow, log or tomorrow.train)
    views = None if content is None else content.views
    model = build_model(config.model, log or tomorrow.train, torch_stream(0, "init"), views)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    start.apply(model)
    return model, fresh


def test_the_same_ids_keep_their_rows(today, days):
    run, config = today
    model, fresh = started(run, config, days[1])
    for table, ids, known in (
        ("user_table", days[1].user_ids, run.user_ids.to_list()),
        ("item_table", days[1].item_ids, run.item_ids.to_list()),
    ):
        now, before = getattr(model, table), getattr(run.model, table)
        changed = 0
        for row, name in enumerate(ids):
            if name in known:
                assert torch.equal(now[row], before[known.index(name)])
            else:
                changed += not torch.equal(now[row], fresh[table][row])
                assert now[row].isfinite().all()
        assert changed > 0.8 * (len(ids) - len(known))


def test_weights_that_belong_to_no_id_are_taken_over_or_start_anew(today, days):
    run, config = today
    model, fresh = started(run, config, days[1])
    shared = [name for name, _ in model.named_parameters() if not name.startswith(("user_", "item_"))]
    assert bool(shared) == (config.model.name in ("mhcr", "tower"))
    old = dict(run.model.named_parameters()) if config.model.name == "tower" else fresh
    assert all(
        torch.equal(parameter, old[name]) for name, parameter in model.named_parameters() if name in shared
    )


def test_views_are_those_of_today_where_the_weights_on_them_are(today, days, tmp_path):
    run, config = today
    if config.model.name not in ("mhcr", "tower"):
        pytest.skip("reads no content")
    short = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})})
    result = train(days[1], short, tmp_path / "next", start=run)
    kept = config.model.name == "tower"
    assert result["start"]["content"] == ("kept" if kept else "anew")
    files = [sorted((path / "views").glob("*.safetensors")) for path in (run.path, tmp_path / "next")]
    assert files[0]
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)]
    assert all(same) if kept else not all(same)


def test_new_users_are_placed_by_what_they_clicked(today, days):
    """Where held-out clicks of new users stand in their ranking before any step: 0.5 is chance, 1 the top."""
    run, config = today
    tomorrow = days[1]
    floor = {"lightgcn": 0.55, "mhcr": 0.6, "tower": 0.55}.get(config.model.name)
    if floor is None:
        pytest.skip("MF on so few clicks ranks little better than chance, also for users that it knows")
    model, _ = started(run, config, tomorrow)
    new = np.flatnonzero(~tomorrow.user_ids.is_in(run.user_ids.implode()).to_numpy())
    assert _level(model, new, tomorrow.test) > floor


def _level(model, users, targets) -> float:
    vectors, items = model.vectors_for_scoring()
    scores = (vectors[torch.from_numpy(users)] @ items.T).detach()
    ranks = (scores.argsort(dim=1).argsort(dim=1).float() / (scores.shape[1] - 1)).numpy()
    rows = [(at, targets.row(int(user)).copy()) for at, user in enumerate(users)]
    return float(np.mean([ranks[at, row].mean() for at, row in rows if len(row)]))


def test_quality_is_reached_sooner(today, days, tmp_path):
    run, config = today
    train(days[1], config, tmp_path / "nothing")
    result = train(days[1], config, tmp_path / "from", start=run)
    metric = config.training.metric
    nothing, warm = (
        [record[metric] for record in load_run(tmp_path / path).metrics] for path in ("nothing", "from")
    )
    assert warm[0] > nothing[0] + 0.02
    # A tower, trained on at full rate, comes near the level of a training from nothing and stays there.
    level = (0.9 if config.model.name == "tower" else 0.97) * max(nothing)
    needed, there = (next(at for at, value in enumerate(of, 1) if value >= level) for of in (nothing, warm))
    assert there < needed
    assert result["start"]["known_users"] == run.model.n_users
    assert result["run_hash"] != load_run(tmp_path / "nothing").result["run_hash"]


def test_a_cut_run_goes_on_bit_for_bit(today, days, tmp_path, monkeypatch):
    run, config = today
    whole = train(days[1], config, tmp_path / "whole", start=run)

    def cut(event, /, **values):
        if event == "epoch" and values["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(days[1], config, tmp_path / "cut", start=run, emit=cut)
    again = train(days[1], config, tmp_path / "cut", start=run, resume=True)
    assert again["metrics"] == whole["metrics"]
    with pytest.raises(InputError, match="another config or other data"):
        train(days[1], config, tmp_path / "cut", resume=True)


def test_the_command_takes_the_config_of_the_run(today, days, tmp_path):
    run, config = today
    write_dataset(days[1], tmp_path / "data")
    words = ["train", str(tmp_path / "data"), "--from", str(run.path), "--epochs", "1"]
    answer = call([*words, "--out", str(tmp_path / "next")])
    assert answer["config"]["model"] == json.loads(config.model_dump_json())["model"]
    assert answer["config"]["training"]["lr"] == config.training.lr
    assert answer["start"]["known_items"] == 130
    with pytest.raises(InputError, match=r"model\.dim is 16 there and 32 here"):
        call([*words, "--set", "model.dim=32", "--out", str(tmp_path / "wide")])
    assert not (tmp_path / "wide").exists()


def test_runs_that_cannot_be_started_from(today, days, tmp_path):
    run, config = today
    renamed = Dataset("x", pl.Series(["stranger"]), days[1].item_ids, Interactions.empty(1, 150))
    with pytest.raises(InputError, match="knows none of the users"):
        WarmStart(run, config, renamed)
    train(days[0], build_config(model="popularity"), tmp_path / "popularity")
    with pytest.raises(InputError, match="no vectors to start from"):
        WarmStart(load_run(tmp_path / "popularity"), build_config(model="popularity"), days[1])
