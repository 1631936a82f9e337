"""Rivals for cold items: known answers of the specs, and what holds of content models whatever they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from firstlight.core.errors import InputError
from firstlight.core.seeds import torch_stream
from firstlight.data.catalogue import FeatureMatrix
from firstlight.data.interactions import Interactions
from firstlight.evaluation.ranking import evaluate_ranking
from firstlight.models import MODELS
from firstlight.models.base import Batch, build_model
from firstlight.models.clcrec import Candidates, CLCRecConfig, objective
from firstlight.models.content import content_rows
from firstlight.models.content_knn import ContentKNN, ContentKNNConfig
from firstlight.models.histories import fold_in
from firstlight.models.ials import IALS, FactorOptions, IALSConfig, factorise, solve_rows
from firstlight.models.towers import candidate_scores, content_input, dropped, perceptron
from firstlight.training.checkpoint import load_tensors, save_tensors
from firstlight.training.config import build_config
from firstlight.training.loop import Phase
from firstlight.training.run_folder import ModelScorer
from worlds import checkerboard, random_log, random_views

TRAINED = ["tower", "dropoutnet", "clcrec"]
CONTENT = ["content-knn", *TRAINED]
ALL = [*CONTENT, "random", "ials"]
SMALL = ["model.dim=8", "training.batch_size=16", "negatives.count=6", "training.lr=0.01"]


def log_with_cold(n_users=9, n_items=14, cold=3, seed=0) -> Interactions:
    """A random log whose last items have no pair."""
    warm = random_log(n_users, n_items - cold, 60, seed)
    return Interactions(warm.indptr, warm.items, n_items)


def make(name, log, views=None, overrides=(), seed=0):
    config = build_config(model=name, overrides=list(overrides)).model
    return build_model(config, log, torch_stream(seed, "init"), views or random_views(log.n_items))


def train(name, log, views, epochs=3, overrides=(), **named):
    config = build_config(model=name, overrides=[*SMALL, *overrides], **named)
    phase = Phase("train", config, log, epochs=epochs, views=views)
    phase.run()
    return phase


def view(values) -> FeatureMatrix:
    values = np.array(values, np.float32)
    return FeatureMatrix(values, np.ones(len(values), np.bool_))


# --- all of them


@pytest.mark.parametrize("name", ALL)
def test_saved_and_read_back_bit_for_bit(name, tmp_path):
    log, views = log_with_cold(), random_views(14)
    model = train(name, log, views).model if name in TRAINED else make(name, log, views)
    save_tensors(tmp_path / "model.safetensors", model.state_dict())
    again = type(model).from_state(model.config, log, load_tensors(tmp_path / "model.safetensors"), views)
    users = torch.arange(9)
    assert torch.equal(ModelScorer(again).scores(users), ModelScorer(model).scores(users))


@pytest.mark.parametrize("name", ["ials", "dropoutnet"])
def test_reading_back_does_not_solve_again(name, monkeypatch):
    log, views = log_with_cold(), random_views(14)
    model = make(name, log, views)
    monkeypatch.setattr("firstlight.models.ials.solve_rows", None)
    type(model).from_state(model.config, log, model.state_dict(), views)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("negatives", ["uniform", "shared", "in-batch", "all"])
def test_training_is_repeatable_and_leaves_the_global_stream_alone(name, negatives):
    log, views = log_with_cold(), random_views(14)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(name, log, views, negatives=negatives).model
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = train(name, log, views, negatives=negatives).model
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls(name):
    history = train(name, log_with_cold(), random_views(14), epochs=30).progress.history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("name", CONTENT)
def test_a_new_item_depends_on_its_own_row_only(name):
    log, views = log_with_cold(), random_views(14)
    model = train(name, log, views).model if name in TRAINED else make(name, log, views)
    new = random_views(6, seed=5)
    vectors = model.encode_items(new)
    for row in range(6):
        alone = {key: FeatureMatrix(m.values[[row]], m.present[[row]]) for key, m in new.items()}
        assert torch.allclose(model.encode_items(alone)[0], vectors[row], atol=1e-6)


@pytest.mark.parametrize("name", CONTENT)
def test_cold_items_stand_where_their_content_puts_them(name):
    log, views = log_with_cold(), random_views(14)
    model = train(name, log, views).model if name in TRAINED else make(name, log, views)
    assert model.cold.nonzero()[:, 0].tolist() == [11, 12, 13]
    assert torch.allclose(model.item_vectors()[11:], model.encode_items(views)[11:], atol=1e-6)


@pytest.mark.parametrize("name", CONTENT)
def test_one_view_absent_views_zero_rows_and_constants(name):
    log = log_with_cold()
    one = {"only": view(np.ones((14, 1)))}
    bare = {
        "a": view(np.zeros((14, 3))),
        "b": FeatureMatrix(np.zeros((14, 2), np.float32), np.zeros(14, np.bool_)),
    }
    for views in (one, bare):
        model = train(name, log, views).model if name in TRAINED else make(name, log, views)
        assert bool(ModelScorer(model).scores(torch.arange(9)).isfinite().all())
    assert model.encode_items({"a": view([[1, 0, 0]])}).isfinite().all()
    with pytest.raises(InputError, match="none of the views"):
        model.encode_items({"c": view([[1.0]])})


@pytest.mark.parametrize("name", CONTENT)
def test_content_is_asked_for(name):
    with pytest.raises(InputError, match="content"):
        build_model(MODELS.load(name).Config(), log_with_cold(), torch_stream(0, "init"))


@pytest.mark.parametrize("name", [*CONTENT, "ials"])
def test_new_users_by_their_histories(name):
    log, views = log_with_cold(), random_views(14)
    model = train(name, log, views).model if name in TRAINED else make(name, log, views)
    histories = Interactions(np.array([0, 0, 3]), np.array([1, 4, 12], np.int32), 14)
    vectors = model.encode_users(histories)
    width = model.item_vectors().shape[1]
    assert vectors.shape == (2, width)
    inner = vectors[:, :-1] if name in TRAINED else vectors
    assert not inner[0].any()
    assert inner[1].isfinite().all()
    assert inner[1].any()


@pytest.mark.parametrize("name", TRAINED)
def test_content_finds_cold_items_of_a_known_taste(name):
    """Even users like even items, and content says which are which: the cold even ones come first."""
    data = checkerboard(n_items=30, hold=0)
    warm = data.train.select(data.train.items < 24)
    taste = view(
        np.eye(2)[np.arange(30) % 2] * 2 - 1 + 0.1 * np.random.default_rng(0).standard_normal((30, 2))
    )
    model = train(name, warm, {"taste": taste}, 40, ["training.batch_size=64", "training.lr=0.03"]).model
    pool = np.arange(30) >= 24
    found = evaluate_ranking(
        ModelScorer(model), data.train.select(data.train.items >= 24), [warm], ks=(3,), pool=pool
    )
    assert found.metrics["recall@3"] == 1.0


# --- random


def test_random_scores_are_uniform_and_independent():
    model = make("random", Interactions.empty(400, 500))
    scores = model.scores(torch.arange(400)).double()
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(scores.var()) == pytest.approx(1 / 12, abs=0.002)
    centred = (scores - 0.5) * 12**0.5
    users, items = centred @ centred.T / 500, centred.T @ centred / 400
    for correlations, n in ((users, 500), (items, 400)):
        off = correlations - torch.diag(correlations.diagonal())
        assert float(off.abs().max()) < 6 / n**0.5
    assert 0 <= float(scores.min()) <= float(scores.max()) < 1


def test_random_depends_on_pair_and_seed_only():
    log = random_log(9, 14, 20)
    model, other = make("random", log), make("random", log, seed=1)
    assert torch.equal(model.scores(torch.tensor([4]))[0], model.scores(torch.arange(9))[4])
    assert not torch.equal(model.scores(torch.arange(9)), other.scores(torch.arange(9)))


# --- content k-NN


def test_content_knn_by_hand():
    log = Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 4)
    a = view([[2, 0], [0, 3], [1, 1], [0, 0]])
    model = make("content-knn", log, {"a": a})
    root = 0.5**0.5
    expected = [[root, root, 1, 0], [root, root, 1, 0]]
    assert ModelScorer(model).scores(torch.arange(2)).numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_content_knn_weighs_views_by_cosine():
    """With both views there, the score of two items is the weighted mean of their cosines."""
    views = random_views(6)
    views["view1"] = view(np.random.default_rng(3).standard_normal((6, 3)))
    log = Interactions.from_pairs([0], [2], 1, 6)
    model = make("content-knn", log, views, ["model.weights={view0: 3}"])
    cosines = [content_input(content_rows({k: m}, {k: m.values.shape[1]})) for k, m in views.items()]
    cosines = [(rows @ rows[2]) / rows.shape[1] for rows in cosines]
    expected = (3 * cosines[0] + cosines[1]) / 4
    assert torch.allclose(ModelScorer(model).scores(torch.tensor([0]))[0], expected, atol=1e-6)


def test_content_knn_refuses_weights_that_mean_nothing():
    with pytest.raises(InputError, match="colour"):
        make("content-knn", log_with_cold(), overrides=["model.weights={colour: 1}"])
    with pytest.raises(InputError, match="weight"):
        build_config(model="content-knn", overrides=["model.weights={view0: -1}"])
    with pytest.raises(InputError, match=r"leaves out every view(?s:.)*view0, view1"):
        make("content-knn", log_with_cold(), overrides=["model.weights={view0: 0, view1: 0}"])
    assert ContentKNN.needs_views
    assert not ContentKNN.trainable
    assert ContentKNNConfig().weights == {}


# --- implicit ALS


def test_ials_known_answer():
    """Rivals spec C9: one user."""
    items = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    log = Interactions.from_pairs([0, 0], [0, 1], 1, 3)
    solved = solve_rows(log, items, FactorOptions(unobserved=0.1, regularisation=0.01))
    assert solved[0].tolist() == pytest.approx([0.7558579, 0.7558579], abs=1e-6)


@pytest.mark.parametrize("block", [1, 50, 8 * 2**20])
def test_ials_rows_against_the_stationary_equations(block, monkeypatch):
    """The gradient of the dense objective is zero at every row, whatever the blocks."""
    monkeypatch.setattr("firstlight.models.ials._BLOCK", block)
    log = random_log(12, 9, 40)
    items = torch.randn(9, 4, generator=torch_stream(0, "items")).double()
    options = FactorOptions(unobserved=0.2, regularisation=0.05, exponent=0.7)
    rows = solve_rows(log, items, options).requires_grad_()
    clicked = torch.zeros(12, 9, dtype=torch.bool)
    clicked[log.users.copy(), log.items.copy()] = True
    scores = rows @ items.T
    ridge = 0.05 * (torch.from_numpy(log.user_degrees).double() + 0.2 * 9) ** 0.7
    loss = (scores[clicked] - 1).square().sum() + 0.2 * scores.square().sum()
    (loss + (ridge * rows.square().sum(dim=1)).sum()).backward()
    assert float(rows.grad.abs().max()) < 1e-10


def test_ials_sweeps_lower_the_objective_and_finish_the_checkerboard():
    data = checkerboard()
    model = IALS(IALSConfig(dim=8), data.train, torch_stream(0, "init"))
    assert evaluate_ranking(ModelScorer(model), data.test, [data.train], ks=(1,)).metrics["recall@1"] == 1.0
    options, losses = FactorOptions(), []
    clicked = torch.zeros(24, 20, dtype=torch.bool)
    clicked[data.train.users.copy(), data.train.items.copy()] = True
    user_degrees = torch.from_numpy(data.train.user_degrees)
    item_degrees = torch.from_numpy(data.train.item_degrees)
    for sweeps in (1, 2, 4):
        users, items = factorise(
            data.train, 2, options.model_copy(update={"sweeps": sweeps}), torch_stream(0, "init")
        )
        scores = users @ items.T
        loss = (scores[clicked] - 1).square().sum() + 0.1 * scores.square().sum()
        loss += 0.01 * ((user_degrees + 2.0) * users.square().sum(1)).sum()
        loss += 0.01 * ((item_degrees + 2.4) * items.square().sum(1)).sum()
        losses.append(float(loss))
    assert losses[0] >= losses[1] >= losses[2]


def test_ials_new_user_is_the_old_user_with_that_history():
    """One more half-sweep of users leaves a converged fit where it is."""
    log = random_log(12, 9, 40)
    model = IALS(IALSConfig(dim=3, sweeps=200), log, torch_stream(0, "init"))
    assert torch.allclose(model.encode_users(log), model.user_vectors(), atol=1e-3)


# --- DropoutNet


class FirstColumns(nn.Module):
    """The projection on the preference: what a tower may never get worse than, if nothing is hidden."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x[:, : self.dim]


def dropout_loss(model, overrides_index=None, seed=0):
    users, positives = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    batch = Batch(users, positives, torch.tensor([3, 4, 5, 3]), index=overrides_index)
    encoded = model.encode(0, torch_stream(seed, "step"))
    return float(model.extra_losses(encoded, batch)["squares"].detach())


@pytest.mark.parametrize("index", [None, torch.tensor([[0, 1], [2, 3], [1, 1]])])
def test_dropoutnet_projection_without_dropping_has_no_loss(index):
    shown = make("dropoutnet", log_with_cold(), overrides=["model.dim=4", "model.dropped=0"])
    hidden = make("dropoutnet", log_with_cold(), overrides=["model.dim=4", "model.dropped=1"])
    for model in (shown, hidden):
        model.user_tower, model.item_tower = FirstColumns(4), FirstColumns(4)
    assert dropout_loss(shown, index) == 0.0
    users, items = hidden.user_table, hidden.item_table
    wrong = (users[[0, 1, 2]] * items[[0, 1, 1]]).sum(1).square().mean()
    others = torch.tensor([3, 4, 5, 3])
    drawn = others.expand(3, 4) if index is None else others[index]
    missed = (users[:3, None] * items[drawn]).sum(2).square().mean()
    assert dropout_loss(hidden, index) == pytest.approx(float((wrong + missed) / 2), rel=1e-5)


def test_dropoutnet_batch_without_dropping_is_the_towers_on_true_preferences():
    model = make("dropoutnet", log_with_cold(), overrides=["model.dim=4", "model.dropped=0"])
    users, items = model.training_space()
    error = (model.user_table @ model.item_table.T - users @ items.T).detach().square()
    expected = (error[[0, 1, 2], [0, 1, 1]].mean() + error[:3][:, [3, 4, 5, 3]].mean()) / 2
    assert dropout_loss(model) == pytest.approx(float(expected), rel=1e-4)


def test_dropoutnet_without_preference_forgets_who_the_item_is():
    log, views = log_with_cold(), random_views(14)
    views["view0"].values[2] = views["view0"].values[5]
    views["view1"].values[2] = views["view1"].values[5]
    model = train("dropoutnet", log, views).model
    blind = model.content_vectors(model.content)
    assert torch.equal(blind[2], blind[5])
    assert not torch.equal(model.item_vectors()[2], model.item_vectors()[5])


def test_dropoutnet_preferences_stay_frozen():
    views = random_views(14)
    model = train("dropoutnet", log_with_cold(), views).model
    fresh = make("dropoutnet", model.log, views, ["model.dim=8"])
    assert torch.equal(model.user_table, fresh.user_table)
    assert torch.equal(model.item_table, fresh.item_table)
    assert not model.item_table[11:].any()
    assert not torch.equal(model.user_vectors(), fresh.user_vectors())


# --- CLCRec


@pytest.mark.parametrize("hidden", ["[0]", "[-3]", "[200,0]"])
def test_dropoutnet_refuses_layers_without_a_unit(hidden):
    with pytest.raises(InputError, match=r"model\.hidden.*greater than or equal to 1"):
        build_config(model="dropoutnet", overrides=[f"model.hidden={hidden}"])


def test_clcrec_known_answer():
    """Rivals spec B2."""
    users = torch.tensor([[1.0, 0]])
    ids = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    contents = torch.tensor([[2.0, 0], [0, 1], [-1, 1]])
    replaced = torch.tensor([[False, False, True]])
    config = CLCRecConfig(contrast_temperature=2, alignment=0.5, norm_weight=0.1)
    for negatives in (torch.tensor([1, 2]), torch.tensor([[1, 2]])):
        terms = objective(users, ids, contents, Candidates(torch.tensor([0]), negatives, replaced), 2)
        assert [float(term) for term in terms] == pytest.approx(
            [0.70923188, 0.68026967, 1.06903559], abs=1e-6
        )
        assert float(terms.total(config)) == pytest.approx(0.80165434, abs=1e-6)


def test_clcrec_shared_and_own_negatives_agree():
    """The same negatives, listed once for all rows or once per row; a row's own positive does not count."""
    stream = torch_stream(0, "clcrec")
    users, ids, contents = (torch.randn(n, 5, generator=stream) for n in (4, 6, 6))
    positives, shared = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 4, 2, 3])
    replaced = torch.rand(4, 5, generator=stream) < 0.5
    one = objective(users, ids, contents, Candidates(positives, shared, replaced), 0.7)
    own = objective(users, ids, contents, Candidates(positives, shared.expand(4, 4), replaced), 0.7)
    assert torch.allclose(torch.stack(one), torch.stack(own), atol=1e-6)
    keep = torch.tensor([True, True, True, False, True])  # third negative (place 3) is the positive of row 2
    alone = objective(
        users[2:3], ids, contents, Candidates(positives[2:3], shared[[0, 1, 3]], replaced[2:3, keep]), 0.7
    )
    row = objective(users[2:3], ids, contents, Candidates(positives[2:3], shared, replaced[2:3]), 0.7)
    assert torch.allclose(torch.stack(alone[:2]), torch.stack(row[:2]), atol=1e-6)


def test_clcrec_gathers_the_batch_only(monkeypatch):
    log, views = log_with_cold(), random_views(14)
    model = make("clcrec", log, views)
    seen = []
    monkeypatch.setattr(
        model,
        "content_vectors",
        lambda rows: seen.append(len(rows)) or type(model).content_vectors(model, rows),
    )
    batch = Batch(torch.tensor([0, 1]), torch.tensor([4, 4]), torch.tensor([2, 7, 2]))
    model.extra_losses(model.encode(0, torch_stream(0, "step")), batch)["clcrec"].backward()
    assert seen == [3]
    assert sorted(set(model.item_table.grad._indices()[0].tolist())) == [2, 4, 7]


# --- tower


def test_tower_drops_ids_and_nothing_else():
    log, views = log_with_cold(), random_views(14)
    nobody, everybody = torch.zeros(0, dtype=torch.int64), torch.arange(14)
    for rate, same in (("0", False), ("1", True)):
        model = make("tower", log, views, [f"model.id_dropout={rate}", "model.content_dropout=0"])
        encoded = model.encode(0, torch_stream(0, "step"))
        stepped = model.vectors(encoded, nobody, everybody)[1]
        content = model.content_vectors(model.content)
        assert torch.allclose(stepped, content, atol=1e-6) is same
        assert not torch.allclose(model.training_space()[1], content, atol=1e-6)
    bare = make("tower", log, views, ["model.use_id=false"])
    assert torch.allclose(bare.training_space()[1], bare.content_vectors(bare.content), atol=1e-6)


def test_tower_masks_an_item_once_a_step():
    model = make("tower", log_with_cold())
    encoded = model.encode(0, torch_stream(0, "step"))
    rows = torch.tensor([3, 5, 3, 3])
    items = model.vectors(encoded, torch.zeros(0, dtype=torch.int64), rows)[1]
    assert torch.equal(items[0], items[2])
    assert torch.equal(items[0], items[3])


@pytest.mark.parametrize("loss", ["bpr", "softmax", "bsl", "adap-tau"])
def test_tower_trains_with_every_loss(loss):
    phase = train("tower", log_with_cold(), random_views(14), loss=loss)
    assert bool(ModelScorer(phase.model).scores(torch.arange(9)).isfinite().all())
    users = train(
        "tower", log_with_cold(), random_views(14), overrides=["training.batch=users"], negatives="all"
    )
    assert users.progress.epoch == 3


# --- pieces


def test_content_input_is_scaled_by_row_and_survives_absent_views():
    rows = content_rows({"a": view([[3, 4], [0, 0]]), "b": view([[0, 0, 2], [0, 0, 0]])}, {"a": 2, "b": 3})
    made = content_input(rows)
    assert made[0].tolist() == pytest.approx([x * (5 / 2) ** 0.5 for x in (0.6, 0.8, 0, 0, 1)], abs=1e-6)
    assert not made[1].any()


def test_candidate_scores_in_blocks(monkeypatch):
    monkeypatch.setattr("firstlight.models.towers.BLOCK_ELEMENTS", 10)
    stream = torch_stream(0, "scores")
    queries = torch.randn(7, 3, generator=stream).requires_grad_()
    keys = torch.randn(5, 3, generator=stream).requires_grad_()
    index = torch.randint(5, (7, 2), generator=stream)
    found = candidate_scores(queries, keys, index)
    expected = torch.gather(queries @ keys.T, 1, index)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(7, 2, generator=stream)
    ours = torch.autograd.grad((found * weights).sum(), [queries, keys])
    theirs = torch.autograd.grad((expected * weights).sum(), [queries, keys])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_fold_in_finds_a_linear_map():
    """Where user vectors are an affine map of history means, new users get the same map."""
    log, new = random_log(200, 30, 2000), random_log(5, 30, 40, seed=1)
    stream = torch_stream(0, "fold")
    items, matrix = torch.randn(30, 4, generator=stream), torch.randn(4, 4, generator=stream)
    mean = lambda part: torch.stack([items[part.row(u).copy()].mean(0) for u in range(part.n_users)])  # noqa: E731
    users = 10 * mean(log) @ matrix + 1
    made, expected = fold_in(items, users, log, new), 10 * mean(new) @ matrix + 1
    closeness = torch.cosine_similarity(made - made.mean(0), expected - expected.mean(0), dim=1)
    assert float(closeness.min()) > 0.9


def test_perceptron_and_dropout_draw_from_the_given_stream():
    one, two = (perceptron([4, 3, 2], nn.Tanh, torch_stream(0, "p")) for _ in range(2))
    assert [type(layer).__name__ for layer in one] == ["Linear", "Tanh", "Linear"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    ones = torch.ones(1000)
    assert dropped(ones, 0.5, None) is ones
    kept = dropped(ones, 0.25, torch_stream(0, "d"))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 650 < int(kept.count_nonzero()) < 850
