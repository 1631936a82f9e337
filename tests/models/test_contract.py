"""What every model must do, whatever it is: a new registry line is tested without a new test."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.models import MODELS
from firstlight.models.base import build_model
from firstlight.training.config import RunConfig, build_config
from firstlight.training.loop import Phase
from firstlight.training.run_folder import ModelScorer
from worlds import checkerboard, random_log, random_views

TRAINABLE = [name for name in MODELS.names() if MODELS.load(name).trainable]
QUICK = ["training.batch_size=32", "training.lr=0.05", "negatives.count=16", "training.schedule=constant"]
HYPER = {"hyper_weight": 0.3, "hyperedges": 4}
#: Content models as they come, and where their items reach back to themselves.
CONTENT_ALONE = [
    *[(name, {}) for name in TRAINABLE if MODELS.load(name).needs_views],
    *[(name, {"item_layers": layers}) for name in ("mhcr", "freedom", "mgcn") for layers in (2, 3)],
    *[("mhcr", HYPER | {"layers": layers, "hyper_layers": layers}) for layers in (1, 2, 4)],
    ("mhcr", HYPER | {"item_layers": 2, "layers": 2, "hyper_layers": 2, "hyper_norm": "none"}),
]


def build(name: str, log, seed: int = 0):
    config = MODELS.load(name).Config()
    return build_model(config, log, torch_stream(seed, "init"), views_for(name, log))


def views_for(name: str, log):
    """Content for the models that read some."""
    return random_views(log.n_items) if MODELS.load(name).needs_views else None


def trained(config: RunConfig, log, epochs: int) -> torch.nn.Module:
    phase = Phase("train", config, log, epochs=epochs, views=views_for(config.model.name, log))
    phase.run()
    return phase.model


@pytest.mark.parametrize("name", MODELS.names())
def test_config_round_trip(name):
    config = build_config(model=name)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model.name == name
    with pytest.raises(InputError, match="model"):
        build_config(model=name, overrides=["model.no_such_field=1"])


@pytest.mark.parametrize("name", MODELS.names())
def test_save_and_load_keep_every_score(name):
    log = random_log(9, 14, 60)
    first, second = build(name, log), build(name, log, seed=1)
    second.load_state_dict(first.state_dict())
    users = torch.arange(9)
    a, b = ModelScorer(first), ModelScorer(second)
    assert torch.equal(a.scores(users), b.scores(users))


@pytest.mark.parametrize("name", MODELS.names())
def test_same_seed_same_model(name):
    log = random_log(9, 14, 60)
    states = [build(name, log).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", MODELS.names())
def test_scores_have_their_shape_and_are_finite(name):
    model = ModelScorer(build(name, random_log(9, 14, 60)))
    scores = model.scores(torch.tensor([3, 3, 8]))
    assert scores.shape == (3, 14)
    assert bool(scores.isfinite().all())
    # One user twice. Not to the bit: some processors' products add up the first and the last rows of a block in
    # another order.
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=1e-7)
    assert torch.equal(scores, model.scores(torch.tensor([3, 3, 8])))


@pytest.mark.parametrize("name", MODELS.names())
def test_users_and_items_without_pairs_are_harmless(name):
    log = random_log(9, 14, 60)
    padded = type(log)(np.r_[log.indptr, log.indptr[-1]], log.items, 16)
    scores = ModelScorer(build(name, padded)).scores(torch.arange(10))
    assert scores.shape == (10, 16)
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize("name", [*TRAINABLE, "item-knn"])
def test_checkerboard(name):
    """Half of the users like even items, half odd ones: the held-out like must come first."""
    data = checkerboard()
    model = (
        # BM3 has no negatives, and is the slowest to tell the two halves apart.
        trained(build_config(model=name, overrides=QUICK), data.train, 240 if name == "bm3" else 60)
        if name in TRAINABLE
        else build(name, data.train)
    )
    found = evaluate_ranking(ModelScorer(model), data.test, [data.train], ks=(1,)).metrics
    assert found["recall@1"] == 1.0


def test_popularity_counts():
    log = random_log(6, 5, 30)
    model = build("popularity", log)
    assert model.scores(torch.tensor([0]))[0].tolist() == log.item_degrees.tolist()


def test_item_knn_against_a_double_loop():
    log = random_log(10, 7, 30)
    columns = [set(log.users[log.items == i].tolist()) for i in range(7)]
    cosine = np.array(
        [
            [
                len(a & b) / np.sqrt(max(1, len(a)) * max(1, len(b))) if i != j else 0
                for j, b in enumerate(columns)
            ]
            for i, a in enumerate(columns)
        ]
    )
    expected = np.array([[cosine[log.row(u), i].sum() for i in range(7)] for u in range(10)])
    assert build("item-knn", log).scores(torch.arange(10)).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_items", [40, 400])
def test_item_knn_takes_the_first_of_equally_near_items(n_items):
    """One user clicked everything, so all cosines are equal."""
    log = random_log(1, n_items, 0)
    log = type(log)(np.array([0, n_items]), np.arange(n_items, dtype=log.items.dtype), n_items)
    model = build_model(MODELS.load("item-knn").Config(neighbours=5), log, torch_stream(0, "init"))
    assert model.neighbours[0].tolist() == [1, 2, 3, 4, 5]
    assert model.neighbours[3].tolist() == [0, 1, 2, 4, 5]


def test_lightgcn_is_the_mean_of_powers_of_the_adjacency():
    """He et al. eq. 8, on the (n + m)² matrix that the papers write."""
    log = random_log(6, 8, 20)
    model = build("lightgcn", log)
    a = np.zeros((14, 14))
    a[log.users, 6 + log.items] = a[6 + log.items, log.users] = 1
    degree = np.maximum(a.sum(1), 1) ** -0.5
    a = torch.from_numpy(degree[:, None] * a * degree)
    start = torch.cat([model.user_table, model.item_table]).double().detach()
    expected = (start + a @ start + a @ a @ start + a @ a @ a @ start) / 4
    encoded = model.encode(0, None)
    assert torch.allclose(torch.cat([encoded.users, encoded.items]).double(), expected, atol=1e-6)


def test_lightgcn_gradient_through_the_stored_transpose():
    log = random_log(6, 8, 20)
    model = build("lightgcn", log)
    weights = torch.randn(14, 64, generator=torch.Generator().manual_seed(0))
    encoded = model.encode(0, None)
    (torch.cat([encoded.users, encoded.items]) * weights).sum().backward()
    # A symmetric linear map is its own adjoint: the gradient is the propagation of the weights.
    with torch.no_grad():
        model.user_table.copy_(weights[:6])
        model.item_table.copy_(weights[6:])
    again = model.encode(0, None)
    assert torch.allclose(model.user_table.grad, again.users, atol=1e-5)
    assert torch.allclose(model.item_table.grad, again.items, atol=1e-5)


@pytest.mark.parametrize("mode", ["both", "user", "item", "none"])
def test_normalise_divides_the_named_sides(mode):
    log = random_log(6, 8, 20)
    config = build_config(overrides=[f"model.normalise={mode}"]).model
    model = MODELS.load("mf")(config, log, torch_stream(0, "init"))
    users, items = model.training_space()
    ones = torch.ones(6), torch.ones(8)
    assert torch.allclose(users.norm(dim=1), ones[0]) is (mode in ("both", "user"))
    assert torch.allclose(items.norm(dim=1), ones[1]) is (mode in ("both", "item"))


def test_spectral_start_finds_the_leading_subspace():
    log = checkerboard(hold=0).train
    config = build_config(overrides=["model.init=spectral", "model.dim=2"]).model
    model = MODELS.load("mf")(config, log, torch_stream(0, "init"))
    users, items = model.training_space()
    scores = users @ items.T
    same = (torch.arange(24)[:, None] % 2) == (torch.arange(20) % 2)
    assert float(scores[same].min()) > float(scores[~same].max())


@pytest.mark.parametrize(("name", "changes"), CONTENT_ALONE)
def test_content_alone_stands_for_an_item_whatever_it_learned_of_its_own(name, changes):
    """Not its own neighbour either: nobody who ranks it as if it were new may read its ID, on whatever way back."""
    log = random_log(9, 14, 60)
    config = MODELS.load(name).Config(**changes)
    model = build_model(config, log, torch_stream(0, "init"), views_for(name, log))
    rows = torch.from_numpy(np.flatnonzero(log.item_degrees)[:3])
    before = model.as_if_cold(rows)
    for place, row in enumerate(rows.tolist()):
        kept = model.item_table[row].detach().clone()
        with torch.no_grad():
            model.item_table[row] = torch.linspace(-5, 7, model.item_table.shape[1])
        assert torch.allclose(model.as_if_cold(rows)[place], before[place], atol=1e-6)
        with torch.no_grad():
            model.item_table[row] = kept


@pytest.mark.parametrize("name", [n for n in TRAINABLE if getattr(MODELS.load(n), "needs_neighbours", False)])
def test_training_goes_on_with_the_neighbours_of_its_state(name):
    """A resumed run may find other ones (another machine, an approximate search); a run read back has those saved."""
    log = random_log(9, 14, 60)
    model, views = build(name, log), views_for(name, log)
    state = model.state_dict()
    for key in [key for key in state if key.startswith("neighbour_ids_")]:
        state[key] = state[key].roll(1, dims=0)
    resumed = build(name, log)
    before = resumed.training_space()[1]
    resumed.load_state_dict(state)
    read = type(model).from_state(model.config, log, state, views)
    assert not torch.allclose(resumed.training_space()[1], before)
    assert torch.equal(resumed.training_space()[1], read.training_space()[1])


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_parameter_with_a_row_per_user_or_item_is_named(name):
    """What a later training starts from; no weight has 101 or 211 rows by itself."""
    log = random_log(101, 211, 900)
    overrides = [*QUICK, "loss.name=none"] if MODELS.load(name).own_loss else QUICK
    config = build_config(model=name, overrides=overrides)
    model = Phase("t", config, log, epochs=1, views=random_views(211)).model
    rows = {101: set(model.user_rows), 211: set(model.item_rows)}
    for n, named in rows.items():
        trained = model.named_parameters()
        assert {key for key, p in trained if p.requires_grad and len(p) == n} == named


@pytest.mark.parametrize("batch", ["pairs", "users"])
@pytest.mark.parametrize("negatives", ["uniform", "shared", "all"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_model_trains_on_pairs_and_on_users(name, negatives, batch):
    """All its terms are finite whatever a step takes, and only the rows it names are touched sparsely."""
    own = MODELS.load(name).own_loss
    overrides = [*QUICK, f"training.batch={batch}", "negatives.name=" + negatives, "negatives.count=4"]
    overrides += ["loss.name=none" if own else "loss.name=softmax"]
    log = random_log(9, 14, 60)
    phase = Phase("t", build_config(model=name, overrides=overrides), log, epochs=2, views=random_views(14))
    phase.run()
    assert all(bool(value.isfinite().all()) for value in phase.model.state_dict().values())
    sparse = {key for key, p in phase.model.named_parameters() if p.grad is not None and p.grad.is_sparse}
    assert sparse <= set(phase.model.sparse_rows())
