"""The released Adap-τ step, written as the specification describes it, against ours (specs §3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.training.config import build_config, list_recipes
from firstlight.training.loop import Phase
from worlds import random_log


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_released_mf_step():
    """−w₀ f₊ + log Σ exp(w_u f₋) over per-pair draws, positive outside, plus l2/B·½ of all gathered rows."""
    log = random_log(10, 12, 30)
    changes = ["model.user_dropout=0", "model.l2=0.02", "negatives.count=7", "model.dim=5"]
    phase = Phase(
        "train", build_config(recipe="adap-tau-released-gowalla-mf", overrides=changes), log, epochs=1
    )
    phase.temperature.w_user.copy_(torch.linspace(4, 12, 10))
    users, positives = torch.tensor([0, 4, 4, 9]), torch.tensor([3, 1, 5, 0])
    drawn = phase.computer.sampler.draw(users, positives, torch_stream(1, "step"))
    negatives = drawn.ids[drawn.index].numpy()
    assert negatives.shape == (4, 7)
    total = phase.computer.pairs(users, positives, 0, torch_stream(1, "step")).total
    table_u = phase.model.user_table.detach().double().numpy()
    table_i = phase.model.item_table.detach().double().numpy()
    w0, expected, squares, at_one = float(phase.temperature.w), 0.0, 0.0, {}
    for row, (u, i) in enumerate(zip(users.tolist(), positives.tolist(), strict=True)):
        w_u = float(phase.temperature.w_user[u])
        scores = np.array([cosine(table_u[u], table_i[j]) for j in negatives[row]])
        positive = cosine(table_u[u], table_i[i])
        expected += (-w0 * positive + np.log(np.exp(w_u * scores).sum())) / 4
        squares += (table_u[u] ** 2).sum() + (table_i[i] ** 2).sum() + (table_i[negatives[row]] ** 2).sum()
        at_one.setdefault(u, []).append(-positive + np.log(np.exp(scores).sum()))
    spread = np.unique(negatives, return_counts=True)[1]
    # Ours counts distinct negatives with their mean multiplicity: equal in expectation, exact where it is even.
    mean_uses = negatives.size / len(spread)
    ours = sum((table_i[j] ** 2).sum() for j in np.unique(negatives)) * mean_uses
    theirs = sum((table_i[j] ** 2).sum() * n for j, n in zip(np.unique(negatives), spread, strict=True))
    assert float(total.detach()) == pytest.approx(
        expected + 0.02 / 2 / 4 * (squares - theirs + ours), rel=1e-5
    )
    for user, losses in at_one.items():
        assert float(phase.temperature.loss_sum[user]) == pytest.approx(sum(losses), rel=1e-5)


def test_released_lightgcn_uses_the_other_positives_of_the_batch():
    log = random_log(10, 12, 30)
    changes = ["model.l2=0", "model.dim=5"]
    phase = Phase(
        "train", build_config(recipe="adap-tau-released-gowalla-lightgcn", overrides=changes), log, epochs=1
    )
    users, positives = torch.tensor([0, 4, 4, 9]), torch.tensor([3, 1, 5, 1])
    total = phase.computer.pairs(users, positives, 0, torch_stream(1, "step")).total
    with torch.no_grad():
        first, second = phase.model.training_space()
        scores = (first[users] @ second[positives].T).double().numpy()
    w = float(phase.temperature.w)
    expected = np.mean(
        [-w * scores[b, b] + np.log(np.exp(w * np.delete(scores[b], b)).sum()) for b in range(4)]
    )  # duplicates of an item and the user's other positives stay among the negatives, as released
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    raw_users, raw_items = phase.model.vectors_for_scoring()
    assert not torch.allclose(raw_items.norm(dim=1), torch.ones(12))
    assert raw_users.shape == (10, 5)


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_is_valid_and_says_how_to_run_it(recipe):
    from importlib import resources

    text = (resources.files("firstlight") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# firstlight train ")
    assert f"--recipe {recipe} " in text.splitlines()[0]
    assert build_config(recipe=recipe).model.name in recipe
