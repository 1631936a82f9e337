"""VBPR, LayerGCN, BM3, FREEDOM and MGCN: known answers, dense references, and what a cold item may depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from firstlight.core.errors import InputError
from firstlight.core.seeds import numpy_stream, torch_stream
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.interactions import Interactions
from firstlight.graphs.knn import item_neighbours, nearest, neighbour_map
from firstlight.graphs.pruning import PrunedGraph, prune
from firstlight.losses.contrastive import info_nce
from firstlight.models import MODELS
from firstlight.models.base import Batch, build_model
from firstlight.models.content import content_rows
from firstlight.models.parts import item_graphs
from firstlight.training.config import build_config
from firstlight.training.loop import Phase
from worlds import random_log, random_views

CONTENT = ["vbpr", "bm3", "freedom", "mgcn"]
ALL = [*CONTENT, "layergcn"]
QUICK = ["training.batch_size=32", "training.lr=0.05", "negatives.count=16", "training.schedule=constant"]


def matrix(rows) -> FeatureMatrix:
    values = np.asarray(rows, np.float32)
    return FeatureMatrix(values, np.ones(len(values), np.bool_))


def build(name: str, log: Interactions, views=None, **fields):
    config = MODELS.load(name).Config(**fields)
    given = None if name == "layergcn" else views or random_views(log.n_items)
    return build_model(config, log, torch_stream(0, "init"), given)


def pairs_log(pairs, n_users: int, n_items: int) -> Interactions:
    users, items = np.array(pairs).T
    return Interactions.from_pairs(users, items, n_users, n_items)


def put(parameter: torch.Tensor, value) -> None:
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


def csr(log: Interactions):
    return log.indptr, log.items, log.n_items


def toy(name: str, views=None, **fields):
    """The two users and three items of the specification (G0); item 2 is cold."""
    model = build(name, pairs_log([(0, 0), (0, 1), (1, 1)], 2, 3), views, dim=2, **fields)
    put(model.user_table, [[1, 0], [0, 1]])
    put(model.item_table, [[1, 1], [2, 0], [0, -1]])
    return model


def batch_of(users, positives, negatives, index=None) -> Batch:
    as_rows = [torch.tensor(rows) for rows in (users, positives, negatives)]
    return Batch(*as_rows, index=None if index is None else torch.tensor(index))


# -- pruning ----------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_share_and_renormalises():
    log = random_log(30, 40, 300)
    hop = prune(*csr(log), 0.3, numpy_stream(0), by_degree=True)
    degrees = np.diff(hop.to_users.indptr.numpy())
    kept = int(0.7 * log.n_pairs)
    assert degrees.sum() == kept
    columns = hop.to_users.columns.numpy()
    rows = np.repeat(np.arange(30), degrees)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) <= set(
        zip(log.users.tolist(), log.items.tolist(), strict=True)
    )
    expected = (degrees[rows] * np.bincount(columns, minlength=40)[columns]) ** -0.5
    assert hop.to_users.values.numpy() == pytest.approx(expected, abs=1e-6)


def test_pruning_by_degree_spares_the_unpopular():
    """A star of 100 pairs with item 0 (degree 100) beside 100 pairs of degree one each."""
    users = np.r_[np.arange(100), np.arange(100, 200)]
    items = np.r_[np.zeros(100, np.int64), np.arange(1, 101)]
    log = Interactions.from_pairs(users, items, 200, 101)
    star = {
        way: np.mean(
            [
                int(np.diff(prune(*csr(log), 0.5, numpy_stream(s), by_degree=way).to_items.indptr[:2])[0])
                for s in range(30)
            ]
        )
        for way in (True, False)
    }
    assert star[False] == pytest.approx(50, abs=3)
    assert star[True] < 30  # each of them is ten times less likely to be drawn next


def test_pruned_graph_follows_the_step_alone():
    log = random_log(30, 40, 300)
    graph, again = (PrunedGraph(*csr(log), 0.5, 10, alternate=True) for _ in range(2))
    values = [graph.at(step, 7).to_users.columns for step in (0, 9, 10, 25)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])
    assert torch.equal(again.at(25, 7).to_users.columns, values[3])
    assert not torch.equal(again.at(25, 8).to_users.columns, values[3])
    assert PrunedGraph(*csr(log), 0.0, None).at(3, 7).to_users.indptr[-1] == log.n_pairs


# -- known answers ----------------------------------------------------------------------------------------------


def test_vbpr_known_answer():
    log = pairs_log([(0, 0)], 1, 2)
    views = {"a": matrix([[1, 0], [0, 1]]), "b": matrix([[1], [0]])}
    model = build("vbpr", log, views, dim=2)
    put(model.user_table, [[1, 0]])
    put(model.user_content, [[0.5, -0.5]])
    put(model.item_table, [[1, 2], [0, 1]])
    put(model.project.weight, [[1, 0, 2], [0, 1, -1]])
    put(model.project.bias, [0.1, 0])
    users, items = model.raw_vectors()
    scores = users @ items.T
    assert scores[0].tolist() == pytest.approx([3.05, -0.45], abs=1e-6)
    assert float(F.softplus(scores[0, 1] - scores[0, 0])) == pytest.approx(0.02975042, abs=1e-7)
    # The cold item keeps its content half alone: .5·.1 − .5·1.
    users, items = model.vectors_for_scoring()
    assert (users @ items.T)[0].tolist() == pytest.approx([3.05, -0.45], abs=1e-6)


def test_vbpr_norm_term():
    """(√6 + √3)/2 for P = [[1,2],[0,1]], Q⁺ = [[1,0],[1,1]] and negatives of length zero."""
    model = build(
        "vbpr",
        pairs_log([(0, 0), (1, 1), (0, 2)], 2, 3),
        {"a": matrix([[0], [1], [0]])},
        dim=1,
        norm_weight=1,
    )
    put(model.user_table, [[1], [0]])
    put(model.user_content, [[2], [1]])
    put(model.item_table, [[1], [1], [0]])
    put(model.project.weight, [[1]])
    put(model.project.bias, [0])
    encoded = model.encode(0, None)
    term = model.extra_losses(encoded, batch_of([0, 1], [0, 1], [2]))["norms"]
    assert float(term.detach()) == pytest.approx(2.09077028, abs=1e-6)
    drawn = model.extra_losses(encoded, batch_of([0, 1], [0, 1], [1, 2], index=[[0, 0], [1, 0]]))["norms"]
    listed = model.extra_losses(encoded, batch_of([0, 1], [0, 1], [1, 1, 2, 1]))["norms"]
    assert float(drawn.detach()) == pytest.approx(float(listed.detach()), abs=1e-6)
    assert float(drawn.detach()) == pytest.approx(2.09077028 + 6**0.5 / 2, abs=1e-6)


def test_layergcn_known_answer():
    model = toy("layergcn", layers=2)
    users, items = model.training_space()
    expected = [[2.03783919, 0.84214922], [0.16666667, 0.23570226]]
    assert users.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    expected = [[1.53033009, 0.4267767], [1.01722853, 0.71002499], [0, 0]]
    assert items.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    assert items[2].tolist() == [0.0, 0.0]


def test_layergcn_l2_is_on_the_start():
    model = toy("layergcn", ego_l2=0.1)
    term = model.extra_losses(model.encode(0, None), batch_of([0, 1], [0, 1], [2]))["ego_l2"]
    assert float(term.detach()) == pytest.approx(0.1 / 2 / 2 * (1 + 1 + 2 + 4 + 1))


def test_bm3_known_answer():
    fields = {"dim": 2, "layers": 0, "dropout": 0, "content_weight": 1}
    model = build("bm3", pairs_log([(0, 0)], 1, 1), {"text": matrix([[1]])}, **fields)
    put(model.user_table, [[1, 0]])
    put(model.item_table, [[0.5, 0.5]])
    put(model.predictor.weight, [[1, 0], [1, 1]])
    put(model.projections[0].weight, [[0], [2]])
    encoded = model.encode(0, torch_stream(0))
    assert encoded.items.tolist() == [[1, 1]]
    terms = model.extra_losses(encoded, batch_of([0], [0], [0]))
    assert float(terms["alignment"].detach()) == pytest.approx(0.55278640, abs=1e-6)
    assert float(terms["content"].detach()) == pytest.approx(0.29289322, abs=1e-6)
    assert float(terms["norms"].detach()) == pytest.approx(0.1 * (1 + 2**0.5), abs=1e-6)
    users, items = model.raw_vectors()
    assert float(users[0] @ items[0]) == pytest.approx(3)  # h(u)·h(i) = [1,1]·[1,2]
    two = content_rows({"text": matrix([[1], [-3]])}, {"text": 1})
    assert model.content_vectors(two).tolist() == [[0, 2], [0, -6]]  # h(t)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("binary", [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]),
        ("cosine", [[0.58578644, 0.41421356, 0], [0.41421356, 0.58578644, 0], [0, 0.41421356, 0.58578644]]),
    ],
)
def test_item_graph_known_answer(weighting, expected):
    found = item_neighbours(torch.tensor([[1.0, 0], [1, 1], [0, 2]]), 2)
    (graph,) = item_graphs([found], weighting)
    assert graph(torch.eye(3)).numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_info_nce_known_answer():
    value = info_nce(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 2]]), 0.2)
    assert float(value) == pytest.approx(0.11835852, abs=1e-7)


# -- dense references -------------------------------------------------------------------------------------------


def dense_adjacency(log: Interactions) -> torch.Tensor:
    """The (n + m)² matrix that the papers write, float64."""
    n = log.n_users + log.n_items
    a = np.zeros((n, n))
    a[log.users, log.n_users + log.items] = a[log.n_users + log.items, log.users] = 1
    degree = np.maximum(a.sum(1), 1) ** -0.5
    return torch.from_numpy(degree[:, None] * a * degree)


def dense_light(model, layers: int) -> torch.Tensor:
    a = dense_adjacency(model.log)
    layer = torch.cat([model.user_table, model.item_table]).double()
    total = layer
    for _ in range(layers):
        layer = a @ layer
        total = total + layer
    return total / (layers + 1)


def dense_graph(values: torch.Tensor, k: int, binary: bool) -> torch.Tensor:
    unit = F.normalize(values.double(), dim=1)
    cosine = unit @ unit.T
    order = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :k]
    a = torch.zeros_like(cosine).scatter_(1, order, 1.0) * (cosine > 0)
    a = a if binary else a * cosine
    degree = a.sum(1).clamp(min=1e-12) ** -0.5
    return degree[:, None] * a * degree


def full_log(n_users: int = 7, n_items: int = 9) -> Interactions:
    """Random pairs; every item has at least one."""
    base = random_log(n_users, n_items, 15)
    users = np.r_[base.users, np.arange(n_items) % n_users]
    return Interactions.from_pairs(users, np.r_[base.items, np.arange(n_items)], n_users, n_items)


@torch.no_grad()
def test_freedom_against_dense_matrices():
    log = full_log()
    views = {
        "cover": matrix(random_views(9, (4,))["view0"].values),
        "text": random_views(9, (6, 1), seed=1)["view0"],
    }
    model = build(
        "freedom", log, views, dim=5, neighbours=3, item_layers=2, view_weights={"cover": 0.1, "text": 0.9}
    )
    a = sum(w * dense_graph(v, 3, True) for w, v in zip((0.1, 0.9), model.content.values, strict=True))
    expected = dense_light(model, 2)
    expected[7:] += a @ a @ model.item_table.double()
    users, items = model.raw_vectors()
    assert torch.allclose(torch.cat([users, items]).double(), expected, atol=1e-6)


@torch.no_grad()
def test_mgcn_against_dense_matrices():
    log = full_log()
    views = {"a": random_views(9, (4, 1))["view0"], "b": random_views(9, (6, 1), seed=1)["view0"]}
    model = build("mgcn", log, views, dim=5, neighbours=3)
    rng = torch_stream(3)
    for parameter in model.parameters():  # also biases, which start at zero
        parameter.uniform_(-1, 1, generator=rng)
    lin = lambda layer, x: x @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())  # noqa: E731
    clicks, adjacency = dense_light(model, 2), dense_adjacency(log)
    nodes = []
    for m, values in enumerate(model.content.values):
        gated = (
            model.item_table.double()
            * lin(model.gates[m], lin(model.projections[m], values.double())).sigmoid()
        )
        items = dense_graph(values, 3, False) @ gated
        nodes.append(torch.cat([adjacency[:7, 7:] @ items, items]))
    scores = torch.stack([lin(model.attention[2], lin(model.attention[0], z).tanh())[:, 0] for z in nodes])
    weights = scores.softmax(dim=0)[:, :, None]
    common = weights[0] * nodes[0] + weights[1] * nodes[1]
    specific = [
        lin(g, clicks).sigmoid() * (z - common) for g, z in zip(model.preferences, nodes, strict=True)
    ]
    side = (specific[0] + specific[1] + common) / 3
    encoded = model.encode(0, None)
    assert torch.allclose(torch.cat(encoded.side).double(), side, atol=1e-5)
    assert torch.allclose(torch.cat([encoded.users, encoded.items]).double(), clicks + side, atol=1e-5)
    terms = model.extra_losses(encoded, batch_of([0, 2, 2], [1, 1, 4], [0]))
    pairs = [(torch.tensor([0, 2, 2]), 0), (torch.tensor([8, 8, 11]), 7)]  # rows of the joint table
    contrast = sum(info_nce(side[rows], clicks[rows], 0.2) for rows, _ in pairs)
    assert float(terms["contrast"]) == pytest.approx(0.01 * float(contrast), abs=1e-6)
    z = (clicks + side)[[0, 2, 2, 8, 8, 11, 7]]
    assert float(terms["l2"]) == pytest.approx(1e-4 / 2 * float(z.square().sum()) / 3, rel=1e-5)


@torch.no_grad()
def test_freedom_view_terms_are_bpr_on_projected_views():
    log = full_log()
    model = build("freedom", log, dim=5, view_loss_weight=1.0)
    encoded = model.encode(0, None)
    users, positives, index = [0, 1, 2], [3, 8, 4], [[0], [1], [0]]  # item 8 lacks the second view
    terms = model.extra_losses(encoded, batch_of(users, positives, [5, 6], index))
    for m, rows in ((0, [0, 1, 2]), (1, [0, 2])):
        projected = model.projections[m](model.content.values[m])
        margins = [
            encoded.users[users[r]] @ (projected[positives[r]] - projected[[5, 6][index[r][0]]]) for r in rows
        ]
        assert float(terms[f"bpr_view{m}"]) == pytest.approx(
            float(F.softplus(-torch.stack(margins)).mean()), abs=1e-6
        )
    shared = model.extra_losses(encoded, batch_of(users, positives, [5, 8]))
    only = model.extra_losses(encoded, batch_of(users, positives, [5]))
    assert float(shared["bpr_view1"]) == pytest.approx(float(only["bpr_view1"]), abs=1e-6)


def test_freedom_refuses_weights_of_unknown_views():
    with pytest.raises(InputError, match="sound"):
        build("freedom", full_log(), view_weights={"sound": 1.0})


# -- gradients and training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("negatives", ["shared", "uniform", "in-batch", "all"])
def test_one_step_reaches_every_parameter(name, negatives):
    """Cold items, absent views and users without a pair included: all gradients finite, none left out."""
    log = random_log(9, 14, 30)
    padded = Interactions(np.r_[log.indptr, log.indptr[-1]], log.items, 16)
    overrides = [f"negatives.name={negatives}", "negatives.count=4"]
    config = build_config(model=name, loss="softmax", overrides=overrides)
    phase = Phase("t", config, padded, epochs=1, views=None if name == "layergcn" else random_views(16))
    result = phase._compute(torch.arange(20), 0, torch_stream(0))
    result.total.backward()
    for parameter_name, parameter in phase.model.named_parameters():
        assert parameter.grad is not None, parameter_name
        gradient = parameter.grad.to_dense()
        assert bool(gradient.isfinite().all()), parameter_name
        assert float(gradient.abs().max()) > 0, parameter_name


@pytest.mark.parametrize("name", ALL)
def test_cosine_softmax_trains_and_scores_unit_rows(name):
    log = full_log()
    config = build_config(model=name, loss="adap-tau0", overrides=[*QUICK, "model.normalise=both"])
    phase = Phase("t", config, log, epochs=3, views=None if name == "layergcn" else random_views(9, (4,)))
    phase.run()
    users, items = phase.model.training_space()
    assert bool((users.norm(dim=1) - 1).abs().max() < 1e-5)
    assert bool((items.norm(dim=1) - 1).abs().max() < 1e-5)


@pytest.mark.parametrize("name", ["layergcn", "freedom", "bm3"])
def test_resumed_training_is_the_same_training(name):
    log = random_log(20, 30, 200)
    fields = [] if name == "bm3" else ["model.prune=0.5", "model.prune_every=5"]
    config = build_config(model=name, overrides=[*QUICK, *fields])
    views = None if name == "layergcn" else random_views(30)
    whole = Phase("t", config, log, epochs=3, views=views)
    whole.run()
    first = Phase("t", config, log, epochs=1, views=views)
    first.run()
    state = {key: value.clone() for key, value in first.state().items()}
    second = Phase("t", config, log, epochs=3, views=views)
    second.load_state(state, first.progress)
    second.run()
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


def test_bm3_has_its_own_loss():
    assert build_config(model="bm3").loss.name == "none"
    model = build("bm3", full_log())
    first, second = (
        model.extra_losses(model.encode(0, torch_stream(s)), batch_of([0], [1], [2])) for s in (0, 1)
    )
    assert float(first["alignment"].detach()) != float(second["alignment"].detach())  # dropout on the targets


# -- cold items -------------------------------------------------------------------------------------------------


def with_cold(log: Interactions, more: int) -> Interactions:
    return Interactions(log.indptr, log.items, log.n_items + more)


def first_rows(views, n: int):
    return {name: FeatureMatrix(v.values[:n], v.present[:n]) for name, v in views.items()}


@pytest.mark.parametrize("normalise", ["none", "both"])
@pytest.mark.parametrize("name", CONTENT)
@torch.no_grad()
def test_cold_items_depend_on_their_own_content_alone(name, normalise):
    log, views = full_log(), random_views(12, (5, 3))
    model = build(name, with_cold(log, 3), views, normalise=normalise)
    before = model.vectors_for_scoring()
    put(model.item_table[9:], 100.0)  # untrained IDs of cold items are never looked at
    after = model.vectors_for_scoring()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    alone = model.encode_items(
        {
            "view0": FeatureMatrix(views["view0"].values[10:11], np.ones(1, np.bool_)),
            "view1": FeatureMatrix(views["view1"].values[10:11], np.ones(1, np.bool_)),
        }
    )
    assert torch.allclose(alone[0], after[1][10], atol=1e-6)
    one_view = model.encode_items({"view0": FeatureMatrix(views["view0"].values[11:], np.ones(1, np.bool_))})
    assert torch.allclose(one_view[0], after[1][11], atol=1e-6)  # item 11 lacks the second view
    if normalise == "both":
        assert after[1][9:, :-1].norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("name", CONTENT)
@torch.no_grad()
def test_adding_cold_items_changes_no_other_vector(name):
    log, views = full_log(), random_views(12, (5, 3), seed=4)
    small, large = build(name, log, first_rows(views, 9)), build(name, with_cold(log, 3), views)
    state = small.state_dict()
    noise = torch.randn(3, 64, generator=torch_stream(5))
    lists = {key: value for key, value in large.state_dict().items() if key.startswith("neighbour_")}
    large.load_state_dict(state | lists | {"item_table": torch.cat([state["item_table"], noise])})
    a, b = small.vectors_for_scoring(), large.vectors_for_scoring()
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert torch.allclose(a[1], b[1][:9], atol=1e-6)
    new = {name: FeatureMatrix(v.values[9:], v.present[9:]) for name, v in views.items()}
    assert torch.allclose(small.encode_items(new), b[1][9:], atol=1e-6)


@pytest.mark.parametrize("name", CONTENT)
@torch.no_grad()
def test_odd_content_is_harmless(name):
    """Constant features, rows of zeros, items without any view."""
    log = with_cold(full_log(), 3)
    constant = FeatureMatrix(np.ones((12, 3), np.float32), np.ones(12, np.bool_))
    holes = FeatureMatrix(np.zeros((12, 2), np.float32), np.arange(12) < 2)
    nothing = FeatureMatrix(np.zeros((12, 4), np.float32), np.zeros(12, np.bool_))
    for views in ({"a": constant}, {"a": holes}, {"a": nothing}, {"a": constant, "b": nothing, "c": holes}):
        users, items = build(name, log, views).vectors_for_scoring()
        assert bool((users @ items.T).isfinite().all())


def test_freedom_cold_item_is_the_mean_of_its_warm_neighbours():
    log = with_cold(full_log(), 3)
    views = random_views(12, (5, 1))
    model = build("freedom", log, {"a": views["view0"]}, neighbours=2)
    values = model.content.values[0]
    found = nearest(values[9:], values[:9], 2)
    expected = neighbour_map(found, 9, weighting="binary", normalisation="rows")(model.item_table[:9])
    assert torch.allclose(model.item_vectors()[9:, :-1], expected, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["freedom", "mgcn"])
def test_a_new_item_costs_its_own_row(name, layers, monkeypatch):
    """What the catalogue hands on is made once, and again after a parameter changed."""
    log = random_log(9, 14, 60)
    model = build(name, log, item_layers=layers)
    new = first_rows(random_views(14, seed=1), 2)
    before = model.encode_items(new)
    work = {"freedom": "_by_content", "mgcn": "_by_view"}[name]
    made = getattr(type(model), work)
    calls = []

    def counted(self, layers):
        calls.append(layers)
        return made(self, layers)

    monkeypatch.setattr(type(model), work, counted)
    assert torch.equal(model.encode_items(new), before)
    assert not calls
    put(model.item_table, model.item_table * 2 + 1)
    assert not torch.allclose(model.encode_items(new), before)
    assert calls
    model.load_state_dict(build(name, log, item_layers=layers).state_dict())
    assert torch.equal(model.encode_items(new), before)


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("normalise", ["none", "both"])
def test_cold_items_find_their_users(name, normalise):
    """Even users like even items, odd users odd ones; content shows the parity of items nobody clicked."""
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.arange(24 * 20), 20)
    liked = (users % 2 == items % 2) & (rng.random(480) < 0.8)
    log = Interactions.from_pairs(users[liked], items[liked], 24, 30)
    values = rng.standard_normal((30, 8)).astype(np.float32)
    values[:, :2] += 5 * np.eye(2, dtype=np.float32)[np.arange(30) % 2]
    values -= values[:20].mean(axis=0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    overrides = [*QUICK, "training.lr=0.02", f"model.normalise={normalise}"]
    loss = None if name == "bm3" else "bpr" if normalise == "none" else "softmax"
    if loss == "bpr":
        overrides.append("temperature.tau=1")  # inner products, as published
    phase = Phase(
        "t",
        build_config(model=name, loss=loss, overrides=overrides),
        log,
        epochs=120 if name == "bm3" else 30,  # without negatives it takes longer
        views={"a": matrix(values)},
    )
    phase.run()
    user_vectors, item_vectors = phase.model.vectors_for_scoring()
    scores = (user_vectors @ item_vectors.T)[:, 20:]
    same = (torch.arange(24)[:, None] % 2) == (torch.arange(10) % 2)
    wins = (scores[same].view(24, 5)[:, :, None] > scores[~same].view(24, 5)[:, None, :]).float().mean()
    assert float(wins) > 0.9
