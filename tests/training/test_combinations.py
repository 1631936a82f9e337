"""Every loss × temperature × negatives × model trains, and means what it says."""

from __future__ import annotations

import itertools

import pytest
import torch

from firstlight.core.errors import DivergenceError, InputError
from firstlight.core.seeds import torch_stream
from firstlight.training.config import NegativesConfig, build_config
from firstlight.training.loop import Phase
from firstlight.training.negatives import NegativeSampler
from firstlight.training.optimisers import RowAdam, learning_rate
from worlds import random_log

LOSSES = ["bpr", "softmax", "bsl", "adap-tau", "adap-tau0"]
TEMPERATURES = ["fixed:0.2", "learned", "learned-user", "adaptive", "adaptive-user"]
NEGATIVES = ["uniform", "shared", "in-batch", "all"]
SMALL = ["model.dim=4", "negatives.count=5", "training.batch_size=16", "training.epochs=20"]


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", ["bpr", "softmax", "bsl"])
def test_every_combination_learns(loss, temperature, negatives, model):
    log = random_log(12, 15, 40)
    config = build_config(
        model=model, loss=loss, temperature=temperature, negatives=negatives, overrides=SMALL
    )
    phase = Phase("train", config, log, epochs=3)
    before = {name: value.clone() for name, value in phase.model.state_dict().items()}
    phase.run()
    after = phase.model.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert all(not torch.equal(before[name], after[name]) for name in ("user_table", "item_table"))
    assert phase.progress.epoch == 3


@pytest.mark.parametrize("negatives", ["shared", "all"])
@pytest.mark.parametrize("temperature", ["fixed:0.2", "adaptive-user"])
def test_user_batches_learn(negatives, temperature):
    config = build_config(
        temperature=temperature,
        negatives=negatives,
        overrides=[*SMALL, "training.batch=users", "training.lr=0.05"],
    )
    phase = Phase("train", config, random_log(12, 15, 40), epochs=20)
    start = phase.model.user_table.detach().clone()
    phase.run()
    assert not torch.equal(start, phase.model.user_table)
    losses = [record["loss"] for record in phase.progress.history]
    assert all(loss == loss for loss in losses)
    if temperature.startswith("fixed"):  # an adaptive τ changes the scale of the loss itself
        assert losses[-1] < losses[0]


def test_user_batch_equals_the_sum_over_its_pairs():
    """One logit row a user gives the loss and gradient of all its pairs (specs §7)."""
    log = random_log(10, 13, 50)
    results = []
    for batch in ("pairs", "users"):
        config = build_config(
            temperature="fixed:0.3", negatives="all", overrides=["model.dim=6", f"training.batch={batch}"]
        )
        phase = Phase("train", config, log, epochs=1)
        rng = torch_stream(0, "test")
        if batch == "pairs":
            users = torch.from_numpy(log.users.astype("int64"))
            result = phase.computer.pairs(users, torch.from_numpy(log.items.astype("int64")), 0, rng)
        else:
            result = phase.computer.users(torch.arange(10), 0, rng)
        result.total.backward()
        gradients = [p.grad.to_dense() for p in phase.model.parameters()]
        results.append((result.ranking, gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_shorthands_mean_what_the_paper_calls_them():
    assert build_config(loss="adap-tau").temperature.name == "adaptive-user"
    assert build_config(loss="adap-tau0").temperature.name == "adaptive"
    assert build_config(temperature="fixed:0.25").temperature.tau == 0.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "lightgnc"}, "did you mean 'lightgcn'"),
        ({"overrides": ["model.dim"]}, "key.path=value"),
        ({"overrides": ["model.dim=0"]}, "model.dim"),
        ({"loss": "hinge"}, "loss.name"),
        ({"temperature": "fixed:warm"}, "not a number"),
        ({"recipe": "nothing"}, "no recipe"),
    ],
)
def test_bad_options_say_what_is_known(arguments, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        build_config(**arguments)


def test_masked_negatives_are_exactly_the_known_positives():
    log = random_log(8, 12, 40)
    for name in ("shared", "in-batch"):
        sampler = NegativeSampler(NegativesConfig(name=name, count=30, mask_positives=True), log)
        users = torch.tensor([0, 3, 3, 7])
        positives = torch.tensor([int(log.row(int(u))[0]) for u in users])
        drawn = sampler.draw(users, positives, torch_stream(0, name))
        candidates = positives if drawn.ids is None else drawn.ids
        found = set(zip(*(t.tolist() for t in drawn.exclude), strict=True))
        expected = {
            (row, column)
            for (row, user), (column, item) in itertools.product(
                enumerate(users.tolist()), enumerate(candidates.tolist())
            )
            if item in log.row(user) or (name == "in-batch" and row == column)
        }
        assert found == expected


def test_items_without_training_pairs_are_never_negatives():
    log = random_log(8, 12, 20)
    cold = type(log)(log.indptr, log.items, 20)
    for name in ("uniform", "shared", "all"):
        sampler = NegativeSampler(NegativesConfig(name=name, count=50), cold)
        drawn = sampler.draw(torch.arange(8), torch.zeros(8, dtype=torch.int64), torch_stream(0, name))
        assert set(drawn.ids.tolist()) <= set(log.items.tolist())


def test_logq_offsets_are_minus_log_popularity():
    log = random_log(8, 12, 20)
    sampler = NegativeSampler(NegativesConfig(name="in-batch", logq=True), log)
    positives = torch.tensor([2, 5])
    offset = sampler.draw(torch.tensor([0, 1]), positives, torch_stream(0)).offset
    share = torch.from_numpy(log.item_degrees[positives.numpy()]).clamp(min=1).double() / log.n_pairs
    assert torch.allclose(offset.double(), -share.log())


def test_row_adam_equals_torch_adam_where_all_rows_are_touched():
    table = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(table.clone()), torch.nn.Parameter(table.clone())
    row, reference = RowAdam([("t", ours)], 0.05), torch.optim.Adam([theirs], 0.05)
    for step in range(5):
        target = torch.full((6, 3), float(step))
        for parameter, sparse, optimiser in ((ours, True, row), (theirs, False, reference)):
            optimiser.zero_grad()
            rows = torch.arange(6).repeat(2)  # each row twice: gradients of repeats must add up
            out = torch.nn.functional.embedding(rows, parameter, sparse=sparse)
            ((out - target.repeat(2, 1)) ** 2).sum().backward()
            optimiser.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_row_adam_leaves_untouched_rows_alone():
    parameter = torch.nn.Parameter(torch.ones(5, 2))
    optimiser = RowAdam([("t", parameter)], 0.1)
    torch.nn.functional.embedding(torch.tensor([1, 3]), parameter, sparse=True).sum().backward()
    optimiser.step()
    assert bool((parameter[[0, 2, 4]] == 1).all())
    assert bool((parameter[[1, 3]] != 1).all())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_start_at_the_peak_and_end_where_they_should(schedule):
    rates = [learning_rate(step, 100, 0.5, schedule, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[10] == max(rates) == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.5 if schedule == "constant" else 0.0)


def test_divergence_names_the_cause():
    config = build_config(
        temperature="fixed:0.2", overrides=[*SMALL, "model.normalise=none", "training.lr=1e38"]
    )
    with pytest.raises(DivergenceError, match=r"lower training\.lr"):
        Phase("train", config, random_log(12, 15, 40), epochs=3).run()


def test_dense_rows_follow_torch_adam():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    row, reference = RowAdam([("t", ours)], 0.05), torch.optim.Adam([theirs], 0.05)
    for step in range(4):
        for parameter, optimiser in ((ours, row), (theirs, reference)):
            optimiser.zero_grad()
            ((parameter - step) ** 2).sum().backward()
            optimiser.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        ["training.batch=users", "loss.name=bpr"],
        ["training.batch=users", "loss.positive_in_denominator=true"],
        ["training.batch=users", "negatives.name=in-batch"],
        ["negatives.name=all", "negatives.mask_positives=true"],
        ["negatives.name=shared", "negatives.logq=true"],
        ["evaluation.ks=[20,20]"],
        ["evaluation.ks=[0]"],
        ["training.metric=gini@20"],
        ["model.dim=[1"],
    ],
)
def test_settings_that_would_not_mean_what_they_say_are_refused(changes):
    with pytest.raises(InputError):
        build_config(overrides=changes)


def test_a_loss_named_alone_has_a_fixed_temperature():
    assert build_config(loss="softmax").temperature.name == "fixed"
    assert build_config(loss="bpr").temperature.name == "fixed"
    assert build_config().temperature.name == "adaptive"
    assert build_config(loss="softmax", temperature="adaptive").temperature.name == "adaptive"


def test_a_last_batch_of_one_pair_has_no_in_batch_negative_and_no_harm():
    log = random_log(12, 15, 40)
    config = build_config(
        negatives="in-batch", temperature="adaptive-user", overrides=[*SMALL, "temperature.form=mean"]
    )
    rows = torch.tensor([0])
    phase = Phase("train", config, log, epochs=1)
    before = phase.model.user_table.detach().clone()
    result = phase.computer.pairs(rows, rows, 0, torch_stream(0))
    result.total.backward()
    phase.optimiser.step()
    assert result.ranking == 0.0
    assert torch.equal(phase.model.user_table, before)
    assert float(phase.temperature.loss_count.sum()) == 0


def test_pairs_kept_back_for_the_gap_are_not_the_validation_pairs():
    from firstlight.data.split import carve_validation

    log = random_log(200, 150, 4000)
    _, valid = carve_validation(log, 0.1, 0)
    config = build_config(loss="adap-tau", overrides=[*SMALL, "temperature.form=held-out"])
    phase = Phase("train", config, log, epochs=1)
    kept_back = {(u, i) for u, i in zip(log.users.tolist(), log.items.tolist(), strict=True)}
    kept_back -= set(zip(phase.train.users.tolist(), phase.train.items.tolist(), strict=True))
    validation = set(zip(valid.users.tolist(), valid.items.tolist(), strict=True))
    assert kept_back
    assert len(kept_back & validation) < 0.5 * len(kept_back)


def test_never_clicked_items_do_not_move_the_temperature():
    log = random_log(30, 20, 200)
    more = type(log)(log.indptr, log.items, 60)
    constants = [
        Phase("train", build_config(overrides=SMALL), x, epochs=1).temperature.statistics for x in (log, more)
    ]
    assert constants[0].constant == constants[1].constant
    assert len(constants[1].items) == len(set(log.items.tolist()))
