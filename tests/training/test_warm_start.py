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
from firstlight.models.content import ContentModel
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
    # Its spectral start knows tomorrow's clicks, and is hard to beat on so few of them: this is about the others.
    "mhcr": build_config(model="mhcr", loss="softmax", temperature="fixed:0.2", negatives="all",
                         overrides=[*COMMON, "training.epochs=8", "model.init=xavier"]),
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
    content = fit_content(config, tomorrow, log or tomorrow.train)
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


def test_weights_that_belong_to_no_id_start_anew(today, days):
    run, config = today
    model, fresh = started(run, config, days[1])
    rows = {*model.user_rows, *model.item_rows}
    others = [name for name, _ in model.named_parameters() if name not in rows]
    assert bool(others) == (config.model.name in ("mhcr", "tower"))
    assert all(torch.equal(dict(model.named_parameters())[name], fresh[name]) for name in others)


def test_views_are_fitted_anew(today, days, tmp_path):
    run, config = today
    if config.model.name not in ("mhcr", "tower"):
        pytest.skip("reads no content")
    short = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})})
    train(days[1], short, tmp_path / "from", start=run)
    train(days[1], short, tmp_path / "nothing")
    today_s, warm, nothing = (
        [file.read_bytes() for file in sorted((path / "views").glob("*.safetensors"))]
        for path in (run.path, tmp_path / "from", tmp_path / "nothing")
    )
    assert warm
    assert warm == nothing != today_s


def test_new_users_are_placed_by_what_they_clicked(today, days):
    """Where held-out clicks of new users stand in their ranking before any step: 0.5 is chance, 1 the top."""
    run, config = today
    tomorrow = days[1]
    if config.model.name in ("mf", "tower"):
        pytest.skip("the ID vectors alone rank little better than chance, also users that the model knows")
    model, _ = started(run, config, tomorrow)
    new = np.flatnonzero(~tomorrow.user_ids.is_in(run.user_ids.implode()).to_numpy())
    # Content starts anew, and says nothing yet: the ID vectors do.
    content = isinstance(model, ContentModel)
    vectors = (model.user_table, model.item_table) if content else model.vectors_for_scoring()
    assert _level(vectors, new, tomorrow.test) > (0.53 if content else 0.55)


def _level(vectors, users, targets) -> float:
    scores = (vectors[0][torch.from_numpy(users)] @ vectors[1].T).detach()
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
    assert warm[0] > nothing[0]
    assert max(warm) > 0.98 * max(nothing)
    assert sum(warm[:4]) > sum(nothing[:4]) + 0.02
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
    fitted = build_config(model="dropoutnet", overrides=["model.dim=8", "training.epochs=1"])
    train(days[0], fitted, tmp_path / "fitted")
    with pytest.raises(InputError, match="fits its vectors to the log"):
        WarmStart(load_run(tmp_path / "fitted"), fitted, days[1])
    train(days[0], build_config(model="popularity"), tmp_path / "popularity")
    with pytest.raises(InputError, match="no vectors to start from"):
        WarmStart(load_run(tmp_path / "popularity"), build_config(model="popularity"), days[1])
