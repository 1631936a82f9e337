"""A rule that was taken out of a model, written down and read again, makes the users that the model makes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from firstlight.core.seeds import torch_stream
from firstlight.data.interactions import Interactions
from firstlight.models import MODELS
from firstlight.models.base import build_model
from firstlight.models.content import ContentModel
from firstlight.models.histories import RULES, Histories, received
from firstlight.training.config import build_config
from worlds import random_log, random_views

N_USERS, N_ITEMS = 15, 30
MHCR = {
    "best": [],
    "hypergraphs": ["model.hyper_weight=0.3", "model.hyperedges=4"],
    "tastes": ["model.user_content=0.7", "model.layers=3", "model.item_layers=2"],
    "no fusion": ["model.fusion=none", "model.hyper_weight=0.3"],
    "inner products": ["model.scoring=dot", "model.content_weight=0"],
    "paper": ["model.setting=paper"],
    "released": ["model.setting=released"],
}
CASES = [("mhcr", changes) for changes in MHCR.values()]
CASES += [(name, []) for name in ("ials", "content-knn", "vbpr", "tower", "dropoutnet", "clcrec", "freedom")]
CASES += [("vbpr", ["model.normalise=none"])]
IDS = [
    *(f"mhcr {name}" for name in MHCR),
    *(name for name, _ in CASES[len(MHCR) : -1]),
    "vbpr not normalised",
]


def made(name: str, changes: list[str]):
    """A model at a random start, all of whose parameters count; the last five items are cold."""
    log = random_log(N_USERS, N_ITEMS - 5, 60)
    log = Interactions(log.indptr, log.items, N_ITEMS)
    config = build_config(model=name, overrides=[*changes, "model.dim=6"] if name != "content-knn" else [])
    views = random_views(N_ITEMS, (5, 3)) if MODELS.load(name).needs_views else None
    model = build_model(config.model, log, torch_stream(0, "init"), views)
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch_stream(place, "noise"))
            parameter.add_(0.3 * noise)
        if hasattr(model, "attention") and model.attention.norm is not None:
            model.attention.norm.mean.add_(0.2)
            model.gates[0].first_norm.variance.add_(0.7)
    if isinstance(model, ContentModel):
        model.calibrate(1.3, 0.2)
    return model


def written(histories: Histories):
    """The rule after its way through a file."""
    settings, tensors = histories.rule.state()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    rule = RULES.load(histories.rule.kind)
    return rule.from_state(json.loads(json.dumps(settings)), load(save(tensors)) if tensors else {})


@pytest.mark.parametrize(("name", "changes"), CASES, ids=IDS)
def test_a_rule_makes_the_users_of_its_model(name, changes):
    model = made(name, changes)
    new = random_log(8, N_ITEMS, 20, seed=3)  # cold items among them
    new = Interactions(np.r_[new.indptr, new.indptr[-1]], new.items, N_ITEMS)  # and somebody without a click
    expected = model.encode_users(new)
    found = model.histories()
    rule = written(found)
    assert torch.allclose(rule.users(new, found.handed), expected, atol=1e-6)
    if found.rule.reads == "vectors":
        assert torch.allclose(rule.users(new, model.vectors_for_scoring()[1]), expected, atol=1e-6)
    # One at a time, from the rows of that history alone: what a server does.
    for user in range(len(expected)):
        rows = torch.from_numpy(new.row(user).astype(np.int64))
        alone = Interactions.from_pairs(np.zeros(len(rows), int), np.arange(len(rows)), 1, len(rows))
        assert torch.allclose(rule.users(alone, found.handed[rows])[0], expected[user], atol=1e-5)


@pytest.mark.parametrize("memberships", ["mean", "sum"])
def test_a_known_user_without_an_id_is_what_the_history_makes(memberships):
    """Training and serving read a history alike, the tastes that content gives included."""
    changes = ["model.user_content=0.7", "model.hyper_weight=0.3", f"model.user_memberships={memberships}"]
    model = made("mhcr", changes)
    with torch.no_grad():
        model.user_table.zero_()
    known = model.vectors_for_scoring()[0]
    assert torch.allclose(model.encode_users(model.log), known, atol=1e-5)


def test_models_without_a_way_of_their_own_say_so():
    for name in ("mf", "lightgcn", "popularity"):
        assert (
            build_model(MODELS.load(name).Config(), random_log(5, 9, 20), torch_stream(0)).histories() is None
        )


@pytest.mark.parametrize("changes", MHCR.values(), ids=MHCR)
def test_a_cold_item_of_the_catalogue_hands_on_what_a_new_one_does(changes):
    model = made("mhcr", changes)
    cold = torch.arange(N_ITEMS - 5, N_ITEMS)
    vectors, handed = model.handing(model.content[cold])
    if (
        model.config.self_neighbour
    ):  # the reproducing settings know no cold items: their IDs are handed on, too
        assert handed.shape[1] == model.histories().handed.shape[1]
        return
    assert torch.equal(vectors, model.content_vectors(model.content[cold]))
    assert torch.allclose(handed, model.histories().handed[cold], atol=1e-6)
    alone = model.handing(model.content[cold[2:3]])[1]
    assert torch.allclose(alone, handed[2:3], atol=1e-6)


def test_models_that_know_nothing_of_new_items_hand_on_nothing():
    model = made("dropoutnet", [])
    assert model.handing(model.content[torch.arange(2)])[1] is None


def test_received_by_hand():
    handed = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    log = Interactions.from_pairs([0, 0, 2], [0, 2, 1], 3, 3)
    assert received(log, handed, 1.0).tolist() == [[3, 4], [0, 0], [3, 4]]
    assert torch.allclose(received(log, handed, 0.5)[0], torch.tensor([6.0, 8]) / 2**0.5)


def test_hyperedges_are_memberships_that_count():
    assert made("mhcr", []).hyperedges(made("mhcr", []).content) is None
    model = made("mhcr", MHCR["hypergraphs"])
    members = model.hyperedges(model.content)
    assert members.shape == (N_ITEMS, 2, 4)
    sums = members.sum(dim=2)
    assert torch.allclose(sums[:-1], torch.ones(N_ITEMS - 1, 2), atol=1e-6)
    assert sums[-1].tolist() == pytest.approx([1, 0])  # an item has no hyperedge in a view that it lacks
    assert made("vbpr", []).hyperedges(model.content) is None
