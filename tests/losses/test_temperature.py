"""Adap-τ against the numbers of the paper, the released logs and double loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstlight.data.formats import read_dataset
from firstlight.losses.lambert import lambert_w
from firstlight.losses.temperature import (
    ASSUMED_GAP,
    AdaptiveUserTemperature,
    TemperatureConfig,
    TemperatureStatistics,
    global_inverse_temperature,
    make_temperature,
    user_inverse_temperature,
)


def statistics_of(log, quantile: float = 0.2) -> TemperatureStatistics:
    users, items = torch.from_numpy(log.users.astype("int64")), torch.from_numpy(log.items.astype("int64"))
    return TemperatureStatistics.from_pairs(users, items, log.n_users, log.n_items, quantile)


@pytest.mark.parametrize(
    ("folder", "kept_users", "kept_pairs", "constant", "w0"),
    [
        ("gowalla", 22_490, 746_347, 6.425596769545, 9.179424),
        ("movielens-adaptau", 4_775, 768_063, 2.246974182236, 3.209963),
    ],
)
def test_constant_of_the_published_data(real_data, folder, kept_users, kept_pairs, constant, w0):
    """Specs §2.1: C to the digits that the authors' logs print."""
    statistics = statistics_of(read_dataset(real_data(folder)).train)
    assert len(statistics.users) == kept_users
    assert len(statistics.pair_users) == kept_pairs
    assert statistics.constant == pytest.approx(constant, abs=1e-11)
    policy = make_temperature(TemperatureConfig(name="adaptive"), statistics)
    assert float(policy.w) == pytest.approx(w0, abs=1e-6)


def test_lambert_known_values():
    y = torch.tensor([0.0, 1.0, math.e, -1 / math.e, 1000.0, -5.0], dtype=torch.float64)
    expected = [0, 0.5671432904, 1, -1, 5.249603, -1]
    assert lambert_w(y).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.floats(-0.36, 1e6))
def test_lambert_inverts_its_equation(y):
    w = float(lambert_w(torch.tensor(y)))
    target = float(torch.tensor(y).double())
    assert w * math.exp(w) == pytest.approx(target, rel=1e-12, abs=6e-13)


def test_lambert_against_scipy():
    special = pytest.importorskip("scipy.special")
    y = torch.cat([torch.linspace(-0.3678, 3, 5001), torch.logspace(0.5, 8, 500)]).double()
    assert lambert_w(y).numpy() == pytest.approx(special.lambertw(y.numpy()).real, rel=1e-12, abs=1e-9)


#: Specs §9.3: (L − base)/t₂ → τ_u/τ₀.
FACTORS = {
    -0.3: 0.61299, -0.2: 0.77169, -0.1: 0.89419, 0.0: 1.0, 0.1: 1.09557,
    0.2: 1.18402, 0.5: 1.42153, 1.0: 1.76322, 2.0: 2.34575,
}  # fmt: skip


def test_user_factor_table():
    # The mean of the shifted losses is the base, so one balancing user is added.
    losses = torch.tensor([*FACTORS, -sum(FACTORS)], dtype=torch.float64) + 7.6
    w = user_inverse_temperature(losses, 9.0, TemperatureConfig(beta2=1.0))
    assert (9.0 / w[:-1]).tolist() == pytest.approx(list(FACTORS.values()), abs=1e-5)
    assert float(w[-1] / 9.0) == pytest.approx(math.e)  # far below −1/e: the clamp


def test_extreme_losses_stay_finite():
    losses = torch.tensor([0.0, 5000.0, -5000.0], dtype=torch.float64)
    w = user_inverse_temperature(losses, 1.0, TemperatureConfig())
    assert w[1] == pytest.approx(0.005250, abs=1e-6)
    assert w[2] == pytest.approx(math.e)


@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=30),
    st.floats(-50, 50),
    st.sampled_from(["mean", "quantile"]),
)
def test_shift_of_all_losses_changes_nothing_and_order_is_kept(losses, shift, threshold):
    config = TemperatureConfig(threshold=threshold)
    base = torch.tensor(losses, dtype=torch.float64)
    w = user_inverse_temperature(base, 8.0, config)
    assert torch.allclose(w, user_inverse_temperature(base + shift, 8.0, config), rtol=1e-6)
    order = base.argsort()
    assert bool((w[order].diff() <= 1e-9).all())  # a larger loss never gets a smaller τ


def test_stationary_solution_minimises_the_printed_objective():
    """Specs §1.5: at τ₀ = .1, β = 1, L − m = .2 the minimum of J is at .17632; printed: .10956."""
    tau = torch.linspace(0.05, 0.5, 2_000_001, dtype=torch.float64)
    objective = 0.2 / tau + (tau.log() - math.log(0.1)) ** 2
    assert float(tau[objective.argmin()]) == pytest.approx(0.17632, abs=1e-4)
    losses = torch.tensor([0.2, -0.2], dtype=torch.float64)
    for solution, expected in (("stationary", 0.17632), ("printed", 0.10956)):
        w = user_inverse_temperature(losses, 10.0, TemperatureConfig(beta2=2.0, solution=solution))
        assert float(1 / w[0]) == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(12, (60,), generator=generator)
    items = torch.randint(20, (60,), generator=generator)
    statistics = TemperatureStatistics.from_pairs(users, items, 12, 20)
    unit = torch.nn.functional.normalize
    vectors = unit(torch.randn(12, 5, generator=generator)), unit(torch.randn(20, 5, generator=generator))
    return statistics, vectors


def test_gap_against_double_loop(small):
    statistics, (users, items) = small
    everything = [float(users[u] @ items[i]) for u in statistics.users for i in range(20)]
    positives = [
        float(users[u] @ items[i]) for u, i in zip(statistics.pair_users, statistics.pair_items, strict=True)
    ]
    gap = np.mean(positives) - np.mean(everything)
    w = global_inverse_temperature(users, items, statistics)
    if gap > 1e-6:
        assert w == pytest.approx(statistics.constant / gap, rel=1e-5)
    else:
        assert w is None
    aligned = users.clone()
    aligned[statistics.pair_users] = items[statistics.pair_items]
    everything = [float(aligned[u] @ items[i]) for u in statistics.users for i in range(20)]
    positives = [
        float(aligned[u] @ items[i])
        for u, i in zip(statistics.pair_users, statistics.pair_items, strict=True)
    ]
    delta, spread = np.mean(positives) - np.mean(everything), np.var(positives) - np.var(everything)
    assert delta > 0
    assert global_inverse_temperature(aligned, items, statistics) == pytest.approx(
        statistics.constant / delta, rel=1e-5
    )
    root = delta**2 + 2 * spread * statistics.constant
    expected = statistics.constant / delta if root < 0 else (math.sqrt(root) - delta) / spread
    assert global_inverse_temperature(aligned, items, statistics, "variance") == pytest.approx(
        expected, rel=1e-4
    )


def test_no_gap_no_answer(small):
    statistics, (users, items) = small
    flat = torch.ones_like(items) / math.sqrt(5)
    assert global_inverse_temperature(users, flat, statistics) is None
    policy = make_temperature(TemperatureConfig(name="adaptive", warmup_epochs=0), statistics)
    policy.start_epoch(0, lambda: (users, flat))
    assert float(policy.w) == pytest.approx(statistics.constant / ASSUMED_GAP)


def test_mass_form_puts_half_of_the_mass_on_positives(small):
    statistics, (users, items) = small
    aligned = users.clone()
    aligned[statistics.pair_users] = items[statistics.pair_items]
    w = global_inverse_temperature(aligned, items, statistics, "mass")
    share = torch.softmax(w * aligned @ items.T, dim=1)
    mass = torch.stack(
        [share[u, statistics.pair_items[statistics.pair_users == u]].sum() for u in statistics.users]
    )
    assert float(mass.mean()) == pytest.approx(0.5, abs=1e-3)


def test_user_policy_waits_an_epoch_then_follows_observations(small):
    statistics, vectors = small
    policy = AdaptiveUserTemperature(TemperatureConfig(name="adaptive-user", warmup_epochs=9), statistics)
    policy.start_epoch(0, lambda: vectors)
    ids = torch.arange(12)
    assert torch.equal(policy.for_users(ids)[1], torch.full((12,), float(policy.w)))
    policy.observe(torch.tensor([0, 0, 1]), torch.tensor([7.0, 8.0, 9.0]))
    policy.start_epoch(1, lambda: vectors)
    positive, negative = policy.for_users(ids)
    expected = user_inverse_temperature(torch.tensor([7.5, 9.0]), float(policy.w), policy.config)
    assert negative[:2].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert bool((negative[2:] == float(policy.w)).all())
    assert bool((positive == float(policy.w)).all())


def test_equal_degrees_keep_everybody():
    users, items = torch.arange(6).repeat_interleave(3), torch.arange(18)
    statistics = TemperatureStatistics.from_pairs(users, items, 6, 18)
    assert len(statistics.users) == 6


def test_doubling_pairs_lowers_c_by_log_two():
    users, items = torch.arange(40).repeat_interleave(10), torch.arange(400)
    one = TemperatureStatistics.from_pairs(users, items, 40, 400).constant
    two = TemperatureStatistics.from_pairs(users.repeat(2), items.repeat(2), 40, 400).constant
    assert one - two == pytest.approx(math.log(2))
