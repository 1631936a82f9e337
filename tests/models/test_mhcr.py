"""MHCR against the golden fixture and the invariants of its specification (mhcr §10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.interactions import Interactions
from firstlight.graphs.hypergraph import memberships
from firstlight.losses.contrastive import info_nce, joint_contrast, rank_contrast
from firstlight.losses.negatives import PairNegatives
from firstlight.losses.ranking import LossConfig, ranking_loss
from firstlight.models import mhcr, mhcr_forward
from firstlight.models.base import Batch
from firstlight.models.mhcr import MHCR, MHCRConfig
from firstlight.models.towers import content_input
from firstlight.training.config import build_config


def fill(rows: int, columns: int, s: float, o: float, a: float) -> torch.Tensor:
    return (a * torch.sin(s * torch.arange(rows * columns, dtype=torch.float64) + o)).view(rows, columns)


LOG = Interactions.from_pairs(np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 1, 1, 2, 0, 3, 2, 3]), 4, 5)
BATCH = Batch(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]))


def golden(setting: str, **changes: object) -> MHCR:
    """The fixture of §10: 4 users, 5 items (the last one strictly cold), 3 views, double precision."""
    small = {
        "dim": 4,
        "layers": 2,
        "hyperedges": 2,
        "hyper_layers": 2,
        "neighbours": 2,
        "membership_noise": False,
    }
    config = MHCRConfig.model_validate(
        {"setting": setting, **small, "hyper_dropout": 0.0, "joint_table": 1, **changes}
    )
    widths = {"image": (3, 2.0), "text": (2, 2.1), "video": (4, 2.2)}
    content = {name: fill(5, width, 0.9, start, 1.0) for name, (width, start) in widths.items()}
    views = {name: FeatureMatrix(x.float().numpy(), np.ones(5, bool)) for name, x in content.items()}
    model = MHCR(config, LOG, torch_stream(0, "init"), views)
    # Constants in double precision are set before graphs are built from them.
    model.content = type(model.content)(tuple(content.values()), model.content.present)
    model.double()
    values = {
        "user_table": fill(4, 4, 1.3, 0.1, 0.5),
        "item_table": fill(5, 4, 1.3, 0.2, 0.5),
        "edges.0": fill(3, 2, 1.3, 0.3, 0.5),
        "edges.1": fill(2, 2, 1.3, 0.4, 0.5),
        "edges.2": fill(4, 2, 1.3, 0.5, 0.5),
        "attention.inner.weight": fill(4, 4, 1.3, 0.6, 0.5),
        "attention.query.weight": fill(1, 4, 1.3, 0.7, 0.5),
        "gates.0.first.weight": fill(4, 4, 1.3, 0.8, 0.5),
        "gates.0.second.weight": fill(4, 4, 1.3, 0.9, 0.5),
        "projections.0.weight": fill(4, 3, 1.3, 1.0, 0.5),
        "projections.1.weight": fill(4, 2, 1.3, 1.1, 0.5),
        "projections.2.weight": fill(4, 4, 1.3, 1.2, 0.5),
    }
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in values:
                parameter.copy_(values[name])
            elif name.endswith("bias"):
                parameter.zero_()
    model._permutation = lambda rng: torch.arange(8, -1, -1)
    return model


def bpr(model: MHCR, encoded) -> torch.Tensor:
    users, items = model.vectors(encoded, BATCH.users, torch.cat([BATCH.positives, BATCH.negatives]))
    ones = torch.ones(3, dtype=torch.float64)
    scores = (users * items[:3]).sum(dim=1)
    negatives = PairNegatives(items[3:], torch.arange(3)[:, None])
    return ranking_loss(LossConfig(name="bpr"), users, scores, negatives, ones, ones).per_row.mean()


def near(tensor: torch.Tensor, expected: list[float], digits: float = 1e-6) -> None:
    assert tensor.detach().numpy() == pytest.approx(np.array(expected), abs=digits)


def test_golden_intermediates():
    model = golden("released")
    identity = torch.eye(5, dtype=torch.float64)
    near(model.graphs[0](identity)[0], [0.617938, 0, 0.369302, 0, 0])
    near(model.graphs[1](identity)[2], [0, 0.065418, 0.918019, 0, 0])
    near(model.graphs[2](identity)[4], [0, 0, 0.334292, 0, 0.657416])
    encoded = model.encode(0, torch.Generator())
    near(encoded.clicks[1][4], [0.139443, -0.050661, -0.166546, -0.038441])
    near(encoded.side[1][0], [-0.003340, 0.007854, 0.019118, -0.007563])
    near(encoded.side[1][4], [0.001540, -0.008565, -0.021535, 0.008230])
    near(encoded.hyper[0][0][0], [-0.822152, -0.221243, 0.703788, 0.597768])


@pytest.mark.parametrize(
    ("setting", "total", "ranking", "user", "cold_item"),
    [
        (
            "released",
            0.64307484,
            0.52623348,
            [-0.316036, 0.537502, 0.603598, -0.214578],
            [0.106661, -0.059102, -0.138281, -0.014878],
        ),
        (
            "paper",
            0.69763566,
            0.61046867,
            [-0.145463, 0.342141, 0.328638, -0.174127],
            [0.108202, -0.067667, -0.159816, -0.006647],
        ),
    ],
)
def test_golden_totals(setting, total, ranking, user, cold_item):
    model = golden(setting)
    encoded = model.encode(0, torch.Generator())
    near(encoded.users[0], user)
    near(encoded.items[4], cold_item)
    found = bpr(model, encoded)
    assert float(found.detach()) == pytest.approx(ranking, abs=6e-9)
    terms = model.extra_losses(encoded, BATCH)
    assert float((found + sum(terms.values())).detach()) == pytest.approx(total, abs=6e-9)
    assert float(terms["side-contrast"].detach()) == pytest.approx(0.01 * (0.28908871 + 1.16786626), abs=1e-9)
    assert float(terms["hyper-contrast"].detach()) == pytest.approx(
        1e-5 * (4.15932398 + 4.82725667), abs=1e-12
    )
    assert float(terms["cross-contrast"].detach()) == pytest.approx(
        0.01 * (0.87125865 + 0.80684342 + 1.01866838), abs=1e-9
    )


@pytest.mark.parametrize(
    ("setting", "squares", "norms"), [("released", 1.284e-4, 0.75085824), ("paper", 4.590e-5, 0.45493966)]
)
def test_golden_terms_one_by_one(setting, squares, norms):
    """Every part of the objective that the fixture names, so that none can make up for another."""
    model = golden(setting)
    encoded = model.encode(0, torch.Generator())
    terms = model.extra_losses(encoded, BATCH)
    found = {
        "squares": terms["batch-l2"],
        "norms": terms["table-norm"] / 0.1,
        "users side": info_nce(encoded.side[0][BATCH.users], encoded.clicks[0][BATCH.users], 0.2),
        "items side": info_nce(encoded.side[1][BATCH.positives], encoded.clicks[1][BATCH.positives], 0.2),
        "users joint": joint_contrast(
            [pair.users[BATCH.users] for pair in encoded.hyper], encoded.hyper[1].users, 0.2
        ),
        "items joint": joint_contrast(
            [pair.items[BATCH.positives] for pair in encoded.hyper], encoded.hyper[1].items, 0.2
        ),
    }
    order = torch.arange(8, -1, -1)
    for name, hyper, graph in zip(model.view_dims, encoded.hyper, encoded.views, strict=True):
        found[f"ranks {name}"] = rank_contrast(hyper.both, graph.both, order, 0.1)
    expected = {
        "squares": squares,
        "norms": norms,
        "users side": 1.16786626,
        "items side": 0.28908871,
        "users joint": 4.15932398,
        "items joint": 4.82725667,
        "ranks image": 0.87125865,
        "ranks video": 0.80684342,
        "ranks text": 1.01866838,
    }
    # The specification prints this one to four digits.
    assert float(found.pop("squares").detach()) == pytest.approx(expected.pop("squares"), abs=5e-8)
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(value, abs=1e-8), name


def test_golden_memberships():
    model = golden("released")
    logits = model.content.values[0] @ model.edges[0]
    near(memberships(logits, 0.5)[:, 0], [0.588941, 0.436520, 0.525484, 0.517697, 0.442733])
    of_users = memberships(model.history.users_from(logits), 0.5)
    near(of_users[:, 0], [0.526049, 0.461757, 0.605971, 0.543104])


def test_an_item_without_a_click_stays_where_it_started():
    """Property 2: E_ui = e/(L + 1), and nothing in the layers above."""
    model = golden("released")
    mean, last = model._clicks()
    assert torch.allclose(mean[1][4], model.item_table[4] / 3, atol=1e-15)
    assert not last[1][4].any()


def test_tiny_oracle_of_the_ranking_terms():
    """BPR with its L2 term by hand, and the norms of the tables (§10)."""
    users, positives, negatives = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in ([[1, 2], [0, 1]], [[1, 0], [1, 1]], [[0, 1], [2, 0]])
    )
    off = {"side_contrast": 0.0, "hyper_contrast_weight": 0.0, "cross_contrast_weight": 0.0}
    model = golden("released", **off)
    encoded = model.encode(0, torch.Generator())
    two = Batch(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([2, 3]))
    ones = torch.ones(2, dtype=torch.float64)
    against = PairNegatives(negatives, torch.arange(2)[:, None])
    scores = (users * positives).sum(dim=1)
    ranking = ranking_loss(LossConfig(name="bpr"), users, scores, against, ones, ones).per_row.mean()
    tables = replace(encoded, users=users, items=torch.cat([positives, negatives]))
    squares = model.extra_losses(tables, two)["batch-l2"]
    assert float(squares) == pytest.approx(3.5e-4, abs=1e-12)
    assert float(ranking + squares) == pytest.approx(0.81361169, abs=5e-9)
    norms = model.extra_losses(replace(encoded, users=users, items=positives), replace(two, negatives=None))
    assert float(norms["table-norm"]) / 0.1 * model.n_items / 2 == pytest.approx(2.09077028, abs=5e-9)


def small(seed: int = 0, present: np.ndarray | None = None, n_items: int = 30, **changes: object) -> MHCR:
    """A best-setting model on a small random log whose last four items are cold."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(12, size=150), rng.integers(n_items - 4, size=150)
    log = Interactions.from_pairs(users, items, 12, n_items)
    shown = np.ones((n_items, 2), bool) if present is None else present
    views = {
        name: FeatureMatrix(rng.normal(size=(n_items, width)).astype(np.float32) * shown[:, [m]], shown[:, m])
        for m, (name, width) in enumerate({"text": 7, "cover": 5}.items())
    }
    config = MHCRConfig.model_validate(
        {"dim": 8, "hyperedges": 3, "neighbours": 3, "hyper_weight": 0.2, **changes}
    )
    return MHCR(config, log, torch_stream(seed, "init"), views)


def views_of(model: MHCR, rows: list[int]) -> dict[str, FeatureMatrix]:
    chosen = model.content[torch.tensor(rows)]
    names = list(model.view_dims)
    return {
        name: FeatureMatrix(chosen.values[m].numpy(), chosen.present[:, m].numpy())
        for m, name in enumerate(names)
    }


def test_evaluation_is_deterministic_and_training_is_seeded():
    model = small(membership_noise=True, hyper_dropout=0.3)
    assert torch.equal(model.item_vectors(), model.item_vectors())
    first, second = (model.encode(0, torch_stream(1, "step")).items for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.encode(0, torch_stream(2, "step")).items)


def test_no_hypergraph_weight_no_hypergraph_influence():
    model = small(hyper_weight=0.0)
    before = model.item_vectors()
    with torch.no_grad():
        for edges in model.edges:
            edges.add_(1)
    assert torch.equal(before, model.item_vectors())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_layers": 2, "layers": 2},
        {"setting": "paper", "normalise": "both", "membership_noise": False},
    ],
)
def test_order_of_users_and_items_does_not_matter(changes):
    """Property 5: users and items in another order give the same vectors in that order."""
    first = small(**changes)
    users, items = (torch.randperm(n, generator=torch_stream(n, "order")) for n in (12, 30))
    place = items.argsort().numpy()
    pairs = users.argsort().numpy()[first.log.users], place[first.log.items]
    log = Interactions.from_pairs(*pairs, 12, 30)
    second = MHCR(first.config, log, torch_stream(0, "init"), views_of(first, items.tolist()))
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            order = {"user_table": users, "item_table": items}.get(name)
            given = dict(first.named_parameters())[name]
            parameter.copy_(given if order is None else given[order])
    for mine, other, order in zip(
        first.vectors_for_scoring(), second.vectors_for_scoring(), (users, items), strict=True
    ):
        assert torch.allclose(mine[order], other, atol=1e-5)


def test_hypergraphs_without_a_layer_are_refused():
    with pytest.raises(InputError, match=r"model\.hyper_layers"):
        build_config(model="mhcr", overrides=["model.hyper_layers=0"])


def test_order_of_hyperedges_does_not_matter():
    model = small(hyper_layers=2)
    before = model.item_vectors()
    with torch.no_grad():
        for edges in model.edges:
            edges.copy_(edges.flip(1))
    assert torch.allclose(before, model.item_vectors(), atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("item_layers", [1, 2, 3])
def test_an_item_in_the_table_and_the_same_item_arriving_later(layers, item_layers):
    """Inductive equals transductive (property 11)."""
    model = small(hyper_layers=layers, item_layers=item_layers)
    table = model.item_vectors()
    cold = [26, 27, 28, 29]
    assert torch.allclose(model.encode_items(views_of(model, cold)), table[cold], atol=1e-6)
    # ... and by the forward pass over the whole catalogue, not only by the shared path.
    encoded = model.encode(0, None)
    assert torch.allclose(F.normalize(encoded.items[cold], dim=1), table[cold, :-1], atol=1e-6)


def test_a_cold_item_changes_no_other_vector():
    """Two catalogues that differ in a cold item's content agree in every user and every other item."""
    first = small()
    content = views_of(first, list(range(30)))
    content["text"].values[29] *= -5
    second = MHCR(first.config, first.log, torch_stream(0, "init"), content)
    assert torch.equal(first.user_vectors(), second.user_vectors())
    assert torch.equal(first.item_vectors()[:29], second.item_vectors()[:29])
    assert not torch.equal(first.item_vectors()[29], second.item_vectors()[29])


def test_a_row_is_encoded_alone_as_in_company():
    model = small()
    together = model.encode_items(views_of(model, [26, 27, 28]))
    alone = torch.cat([model.encode_items(views_of(model, [row])) for row in (26, 27, 28)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_missing_view_counts_neither_as_neighbour_nor_in_attention():
    present = np.ones((30, 2), bool)
    present[29, 1] = present[3, 0] = False
    present[28] = False  # nothing is known of this item
    model = small(present=present)
    vectors = model.item_vectors()
    assert bool(vectors.isfinite().all())
    only_text = {name: matrix for name, matrix in views_of(model, [29]).items() if name == "text"}
    assert torch.allclose(model.encode_items(only_text), vectors[[29]], atol=1e-6)


@pytest.mark.parametrize("case", ["one item", "constant features", "zero rows", "one view"])
def test_degenerate_content(case):
    log = Interactions.from_pairs(np.array([0, 1]), np.array([0, 0]), 3, 1 if case == "one item" else 4)
    values = {"zero rows": np.zeros, "constant features": np.ones}.get(case, np.ones)(
        (log.n_items, 3), np.float32
    )
    views = {"text": FeatureMatrix(values, np.ones(log.n_items, bool))}
    model = MHCR(MHCRConfig(dim=4), log, torch_stream(0, "init"), views)
    encoded = model.encode(0, torch_stream(0, "step"))
    (encoded.users.sum() + encoded.items.sum()).backward()
    for users, items in (model.vectors_for_scoring(), (encoded.users, encoded.items)):
        assert bool(users.isfinite().all())
        assert bool(items.isfinite().all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_known_users_without_their_id_are_encoded_as_new_ones():
    """With user IDs at zero, a known user and a new one with the same clicks get the same vector."""
    model = small()
    with torch.no_grad():
        model.user_table.zero_()
    # Item layers above the first depend on user IDs through items; at two layers they are the same for both.
    known, fresh = model.user_vectors(), model.encode_users(model.log)
    assert torch.allclose(known, fresh, atol=1e-5)


def test_users_without_clicks_get_a_finite_vector():
    model = small()
    empty = Interactions.from_pairs(np.array([], np.int64), np.array([], np.int64), 2, 30)
    assert torch.equal(model.encode_users(empty)[:, :-1], torch.zeros(2, 8))


def touched(model: MHCR, loss: torch.Tensor) -> set[str]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and float(p.grad.abs().max()) > 1e-7
    }


def test_gradient_reach_of_the_reproducing_settings():
    """Property 9: what each term trains, in the released code and as the paper draws it."""
    tables = {"user_table", "item_table", "edges.0", "edges.1", "edges.2"}
    before_norm = {"gates.0.first.bias", "gates.0.second.bias", "attention.inner.bias"}
    released = golden("released", cross_contrast_weight=0.01)
    encoded = released.encode(0, torch.Generator())
    terms = released.extra_losses(encoded, BATCH)
    assert touched(released, bpr(released, encoded)) == tables
    assert touched(released, terms["hyper-contrast"] * 1e5) == tables
    cross = touched(released, terms["cross-contrast"])
    assert not any(name.startswith("attention") for name in cross)
    assert {"projections.0.weight", "gates.0.first.weight"} <= cross
    side = touched(released, terms["side-contrast"])
    assert {"attention.query.weight", "projections.0.weight", "gates.0.first.weight"} <= side
    paper = golden("paper")
    reached = touched(paper, bpr(paper, paper.encode(0, torch.Generator())))
    generator = {name for name, _ in paper.named_parameters() if name.startswith("generator")}
    projection_biases = {f"projections.{m}.bias" for m in range(3)}
    assert {
        name for name, _ in paper.named_parameters()
    } - generator - before_norm - projection_biases <= reached
    assert not reached & before_norm


def test_merged_rows_of_a_batch_weigh_as_often_as_they_stand_there():
    rng = torch_stream(0, "rows")
    a, b, table = (torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in (3, 3, 7))
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    counts = torch.tensor([2, 1, 3])
    assert float(info_nce(a[rows], b[rows], 0.2)) == pytest.approx(
        float(info_nce(a, b, 0.2, counts)), abs=1e-12
    )
    repeated = joint_contrast([a[rows], b[rows]], table, 0.2)
    assert float(repeated) == pytest.approx(float(joint_contrast([a, b], table, 0.2, counts)), abs=1e-10)


def test_a_clicked_item_that_is_cold_hands_on_no_id():
    """The ID of an item that training never saw is noise: a new user's vector must not depend on it."""
    model = small()
    history = Interactions.from_pairs(np.array([0, 0]), np.array([2, 29]), 1, 30)
    before = model.encode_users(history)
    with torch.no_grad():
        model.item_table[29] = 100.0
    assert torch.allclose(before, model.encode_users(history), atol=1e-6)


def test_the_bias_of_content_stands_in_loss_and_score_alike():
    """The cold softmax against a plain loop, and the same bias in the scores of items that arrive."""
    model = small(cold_bias_dropout=0.0, user_dropout=0.0, content_dropout=0.0)
    with torch.no_grad():
        model.appeal.copy_(torch.linspace(-1, 1, len(model.appeal)))
    model.calibrate(0.5, 0.25)
    users, items = torch.tensor([0, 2, 2]), torch.tensor([1, 3, 4])
    encoded = model.encode(0, torch_stream(0, "step"))
    loss = model.extra_losses(encoded, Batch(users, items, None))["cold"] / model.config.cold_loss
    tau, bias = model.config.cold_temperature, content_input(model.content) @ model.appeal
    logits = F.normalize(encoded.users, dim=1) @ F.normalize(encoded.if_cold, dim=1).T / tau + bias
    plain = [
        torch.logsumexp(logits[u][~model.cold], 0) - logits[u, i] for u, i in zip(users, items, strict=True)
    ]
    assert torch.allclose(loss, torch.stack(plain).mean(), atol=1e-6)

    cold = [26, 27, 28, 29]
    vectors = model.encode_items(views_of(model, cold))
    assert torch.allclose(vectors[:, -1], 0.25 + 0.5 * tau * bias[cold], atol=1e-6)
    assert torch.allclose(vectors, model.as_if_cold(torch.tensor(cold)), atol=1e-6)


def test_content_that_many_like_is_worth_more_to_everybody():
    """Every user clicks most items that share a feature; another that has it, too, outranks one that has not."""
    rng = np.random.default_rng(0)
    marked = np.arange(60) % 2 == 0
    clicks = rng.random((80, 60)) < np.where(marked, 0.5, 0.05)
    clicks[:, 56:] = False
    log = Interactions.from_pairs(*(side.astype(np.int64) for side in clicks.nonzero()), 80, 60)
    content = np.stack([marked, ~marked, *rng.normal(size=(4, 60)) * 0.3], axis=1).astype(np.float32)
    views = {"text": FeatureMatrix(content, np.ones(60, bool))}
    model = MHCR(MHCRConfig(dim=8, cold_bias_dropout=0.0), log, torch_stream(0, "init"), views)
    optimiser = torch.optim.Adam([model.appeal], lr=0.05)
    batch = Batch(
        torch.from_numpy(log.users.astype(np.int64)), torch.from_numpy(log.items.astype(np.int64)), None
    )
    for step in range(20):
        optimiser.zero_grad()
        model.extra_losses(model.encode(step, torch_stream(step, "step")), batch)["cold"].backward()
        optimiser.step()
    bias = model.as_if_cold(torch.arange(56, 60))[:, -1]
    assert bias[0] > bias[1] + 0.1
    assert bias[2] > bias[3] + 0.1


REACHING_BACK = [
    {"hyper_weight": 0.3, "layers": 1},
    {"hyper_weight": 0.3, "layers": 2, "hyper_layers": 2},
    {"hyper_weight": 0.3, "layers": 4, "hyper_layers": 3, "hyper_norm": "none"},
    {"hyper_weight": 0.0, "item_layers": 2},
    {"hyper_weight": 0.3, "layers": 3, "item_layers": 3, "hyper_dropout": 0.3},
    {"hyper_weight": 0.3, "layers": 2, "fusion": "last-layer"},
]


@pytest.mark.parametrize("changes", REACHING_BACK)
def test_a_hidden_item_learns_nothing_of_its_own_id(changes):
    """Neither where training hides its ID nor where all items are ranked as if they were cold (mhcr §9.1)."""
    model = small(cold_share=0.5, content_dropout=0.0, hyper_contrast_weight=0.1, **changes).double()
    encoded = model.encode(0, torch_stream(1, "step"))
    hidden = (encoded.hidden & ~model.cold).nonzero()[:, 0].tolist()
    assert hidden
    for rows, vectors in ((hidden, encoded.items), ((~model.cold).nonzero()[:, 0].tolist(), encoded.if_cold)):
        for row in rows:
            (slope,) = torch.autograd.grad(vectors[row].sum(), model.item_table, retain_graph=True)
            assert float(slope[row].abs().max()) < 1e-12
            others = slope[(~model.cold).nonzero()[:, 0]]
            assert float(others.abs().max()) > 0  # its neighbours and hyperedges speak of others


def test_the_table_of_negatives_is_named():
    """``text`` where nothing is said, wherever it stands; the last view where there is none."""
    views = {name: FeatureMatrix(np.ones((5, 2), np.float32), np.ones(5, bool)) for name in ("text", "cover")}

    def table(named: object = -1, *, without: str = "") -> int:
        given = {name: view for name, view in views.items() if name != without}
        given |= {"clip": views["text"]} if without else {}
        config = MHCRConfig(setting="released", dim=4, joint_table=named)
        return MHCR(config, LOG, torch_stream(0, "init"), given).joint_table

    assert [table(), table("cover"), table(1), table(without="text")] == [0, 1, 1, 1]
    assert MHCRConfig().joint_table == -1  # what runs have in their identity
    for unknown in ("titel", 2):
        with pytest.raises(InputError, match=r"joint_table names .*(?s:.)*their views: text, cover"):
            table(unknown)


def test_the_released_table_is_the_default():
    """The golden fixture without a word: its second view is the text."""
    model = golden("released", joint_table=-1)
    terms = model.extra_losses(model.encode(0, torch.Generator()), BATCH)
    assert float(terms["hyper-contrast"].detach()) == pytest.approx(
        1e-5 * (4.15932398 + 4.82725667), abs=1e-12
    )


@pytest.mark.parametrize("setting", ["best", "paper", "released"])
def test_a_catalogue_of_one_item_trains(setting):
    """Batch normalisation over items then sees a single row."""
    log = Interactions.from_pairs(np.array([0, 1]), np.array([0, 0]), 3, 1)
    views = {"text": FeatureMatrix(np.ones((1, 3), np.float32), np.ones(1, bool))}
    model = MHCR(MHCRConfig(setting=setting, dim=4), log, torch_stream(0, "init"), views)
    encoded = model.encode(0, torch_stream(0, "step"))
    batch = Batch(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    (encoded.users.sum() + encoded.items.sum() + sum(model.extra_losses(encoded, batch).values())).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(bool(vectors.isfinite().all()) for vectors in model.vectors_for_scoring())


@pytest.mark.parametrize("setting", ["paper", "released"])
def test_reproducing_settings_rank_a_cold_item_by_its_id_and_the_graphs(setting):
    """As the authors' code does; only the calibration, neutral unless fitted, is ours."""
    model = golden(setting)
    users, items = model.raw_vectors()
    found = model.vectors_for_scoring()
    assert torch.equal(found[0][:, :-1], users)
    assert torch.equal(found[1], F.pad(items, (0, 1)))
    before = model.item_vectors()[4]
    with torch.no_grad():
        model.item_table[4] += 1
    assert not torch.allclose(model.item_vectors()[4], before)
    model.calibrate(0.5, 2.0)
    raw, calibrated = model.raw_vectors()[1], model.item_vectors()
    assert torch.equal(calibrated[:4, :-1], raw[:4])
    assert torch.allclose(calibrated[4], torch.cat([raw[4] / 2, raw.new_tensor([2.0])]))


@pytest.mark.parametrize("fusion", ["none", "last-layer", "side"])
@pytest.mark.parametrize("hyper_weight", [0.0, 0.2])
def test_what_no_score_reads_is_not_made(fusion, hyper_weight, monkeypatch):
    """Neighbours of new items without the content side, memberships without a weight; training has its own."""
    model = small(fusion=fusion, hyper_weight=hyper_weight)
    made = set()
    for module in (mhcr, mhcr_forward):
        for name in {"nearest_unit", "memberships", "hyperedge_vectors"} & vars(module).keys():
            real = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *given, name=name, real=real: (made.add(name), real(*given))[1]
            )
    expected = {"nearest_unit"} if fusion == "side" else set()
    expected |= {"memberships", "hyperedge_vectors"} if hyper_weight else set()
    assert model.encode_items(views_of(model, [27, 3])).shape == (2, 9)
    assert model.encode_users(model.log).shape == (12, 9)
    assert model.handing(model.content[torch.tensor([4])])[1].shape[1] == model.histories().handed.shape[1]
    assert made == expected


def test_items_from_outside_ask_for_nothing_that_clicked_ones_sent(monkeypatch):
    """What comes back over the click graph costs many products from four layers on: a server never needs it."""
    model = small(layers=4)
    calls = []
    real = mhcr_forward.own_returns
    monkeypatch.setattr(mhcr_forward, "own_returns", lambda *given: (calls.append(1), real(*given))[1])
    model.encode_items(views_of(model, [1, 2]))
    model.vectors_for_scoring()
    assert not calls
    for _ in range(2):
        model.as_if_cold(torch.tensor([1, 29]))
    assert calls == [1]


def test_the_setting_decides_how_cold_items_are_ranked():
    """``best`` ranks them by content, also where an item is its own neighbour."""
    model = small(self_neighbour=True)
    cold = model.cold.nonzero()[:, 0]
    outside = model.encode_items(views_of(model, cold.tolist()))
    torch.testing.assert_close(model.vectors_for_scoring()[1][cold], outside)
