"""Subsets, linear probes, few labels and clusters: known answers and independent formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firstlight.core.errors import InputError
from firstlight.evaluation.encoder_clusters import agreement, cluster, matched_accuracy, separation
from firstlight.evaluation.encoder_config import ClusterConfig, LinearConfig, LowShotConfig
from firstlight.evaluation.encoder_features import Layer
from firstlight.evaluation.encoder_linear import ProbeGrid, linear_probe, probe_inputs
from firstlight.evaluation.encoder_low_shot import logistic_regression, low_shot
from firstlight.evaluation.encoder_subsets import held_out, long_tailed, share, shots


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [50, 30, 20, 3]))


def counts(labels, rows):
    return np.bincount(labels[rows], minlength=4).tolist()


def test_shots_are_so_many_a_class_and_nested(labels):
    drawn = {n: shots(labels, n, seed=5) for n in (1, 2, 5)}
    assert counts(labels, drawn[1]) == [1, 1, 1, 1]
    assert counts(labels, drawn[5]) == [5, 5, 5, 3]
    assert set(drawn[1]) < set(drawn[2]) < set(drawn[5])
    assert drawn[5].tolist() == shots(labels, 5, seed=5).tolist()
    assert drawn[5].tolist() != shots(labels, 5, seed=6).tolist()


def test_a_share_is_of_every_class_and_nested(labels):
    assert counts(labels, share(labels, 0.1, 0)) == [5, 3, 2, 1]
    assert set(share(labels, 0.01, 0)) < set(share(labels, 0.1, 0))
    assert counts(labels, share(labels, 1.0, 0)) == [50, 30, 20, 3]


def test_a_draw_of_one_class_does_not_depend_on_the_others(labels):
    few = shots(labels, 4, 0)
    without = labels != 1
    assert np.flatnonzero(without)[shots(labels[without], 4, 0)].tolist() == few[labels[few] != 1].tolist()


def test_a_part_is_held_out_of_every_class_that_can_spare_it():
    labels = np.array([0] * 10 + [1] * 2 + [2])
    held, kept = held_out(labels, 0.2, seed=0)
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 1, 0]
    assert np.array_equal(np.sort(np.concatenate([held, kept])), np.arange(13))
    assert np.bincount(labels[held_out(labels, 0.99, seed=0)[1]]).tolist() == [1, 1, 1]


def test_a_long_tail_falls_along_an_exponential():
    even = np.repeat([0, 1, 2], 100)
    assert np.bincount(even[long_tailed(even, 10, 0)]).tolist() == [100, 32, 10]
    uneven = np.repeat([0, 1, 2], [20, 100, 50])  # the largest class leads; no class gains rows
    assert np.bincount(uneven[long_tailed(uneven, 4, 0)]).tolist() == [20, 100, 50]
    assert np.bincount(uneven[long_tailed(uneven, 100, 0)]).tolist() == [1, 100, 10]


def test_inputs_are_the_output_and_the_last_four_blocks():
    layers = [Layer(block, pooling) for block in range(7) for pooling in ("class", "mean")]
    inputs = probe_inputs(6, layers)
    assert {name: len(parts) for name, parts in inputs.items()} == {
        "class, last 1": 1,
        "class, last 4": 4,
        "class+mean, last 1": 2,
        "class+mean, last 4": 8,
    }
    assert inputs["class, last 1"] == [Layer(6, "class")]
    assert {layer.block for layer in inputs["class+mean, last 4"]} == {2, 3, 4, 5}
    assert list(probe_inputs(6, layers[1::2])) == ["mean, last 1", "mean, last 4"]


def test_a_step_of_the_grid_is_that_of_separate_probes_under_torch():
    rng = torch.Generator().manual_seed(0)
    rates, n_classes, dim = [0.01, 0.5], 3, 5
    grid = ProbeGrid(dim, n_classes, rates, rng)
    assert not list(
        grid.parameters()
    )  # property 29: the norm before the probes has none, and they learn by hand
    assert list(grid.parameters()) == []  # nor has the norm before them any
    models = []
    for index, rate in enumerate(rates):
        probe = nn.Linear(dim, n_classes)
        columns = slice(index * n_classes, (index + 1) * n_classes)
        probe.weight.data = grid.weight[:, columns].T.clone()
        probe.bias.data.zero_()
        norm = nn.BatchNorm1d(dim, affine=False)
        models.append((norm, probe, torch.optim.SGD(probe.parameters(), rate, momentum=0.9)))
    for scale in (1.0, 0.5, 0.25):
        features = 3 + torch.randn(8, dim, generator=rng)
        labels = torch.randint(0, n_classes, (8,), generator=rng)
        with torch.no_grad():
            grid.step(features, labels, scale)
        for (norm, probe, optimiser), rate in zip(models, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * scale
            optimiser.zero_grad()
            F.cross_entropy(probe(norm(features)), labels).backward()
            optimiser.step()
    test = torch.randn(4, dim, generator=rng)
    expected = torch.stack([probe(norm.eval()(test)) for norm, probe, _ in models], dim=1)
    assert torch.allclose(grid.eval()(test), expected, atol=1e-6)


def separable(n, rng, noise=0.3):
    truth = rng.integers(0, 3, n)
    centres = np.eye(3, 6) * 2
    return torch.from_numpy((centres[truth] + noise * rng.normal(size=(n, 6))).astype(np.float32)), truth


def test_probes_learn_what_is_linear_and_are_chosen_without_the_queries():
    rng = np.random.default_rng(1)
    (bank, labels), (queries, truth) = separable(200, rng), separable(100, rng)
    noise = [torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)) for n in (200, 100)]
    good, useless = Layer(1, "mean"), Layer(0, "mean")
    config = LinearConfig(epochs=5, batch_size=50, learning_rates=(1e-6, 0.5))

    def probe(answers):
        banks, asked = {useless: noise[0], good: bank}, {useless: noise[1], good: queries}
        return linear_probe(banks, labels, asked, answers, 2, 3, config, seed=0)

    found = probe(truth)
    assert found.correct.mean() > 0.97
    assert found.chosen[1] == 0.5
    assert found.best_on_queries == pytest.approx(max(max(v) for v in found.grid.values()))
    assert [len(values) for values in found.grid.values()] == [2, 2]
    assert probe((truth + 1) % 3).chosen == found.chosen


def test_a_probe_needs_a_class_with_two_images_to_be_chosen_on():
    rows = {Layer(0, "mean"): torch.eye(3)}
    with pytest.raises(InputError, match="two images"):
        linear_probe(rows, np.arange(3), rows, np.arange(3), 1, 3, LinearConfig(epochs=1), seed=0)
    two = {Layer(0, "mean"): torch.eye(6)}
    labels = np.arange(6) // 2
    found = linear_probe(two, labels, two, labels, 1, 3, LinearConfig(epochs=1), seed=0)
    assert found.correct.shape == (6,)


def test_regression_on_few_labels_does_not_depend_on_the_origin():
    rng = np.random.default_rng(2)
    bank, labels = separable(30, rng, 0.1)
    queries, truth = separable(60, rng, 0.1)
    assert (logistic_regression(bank, labels, queries) == truth).all()
    assert (logistic_regression(bank + 50, labels, queries + 50) == truth).all()
    # the origin is that of the labelled images: a query does not depend on the others
    assert [int(logistic_regression(bank, labels, queries[i : i + 1])[0]) for i in range(6)] == truth[
        :6
    ].tolist()
    assert len(set(truth[:6])) > 1


def test_more_labels_help():
    rng = np.random.default_rng(3)
    bank, labels = separable(600, rng, 1.2)
    queries, truth = separable(300, rng, 1.2)
    config = LowShotConfig(splits=4)
    found = low_shot(bank, labels, queries, truth, config, seed=0)
    assert [entry.labels for entry in found] == ["1-shot", "2-shot", "5-shot", "1 %", "10 %"]
    assert [entry.images for entry in found][:3] == [3, 6, 15]
    assert found[0].mean < found[2].mean
    assert all(len(entry.accuracies) == 4 for entry in found)
    assert len(set(found[0].accuracies)) > 1
    assert found == low_shot(bank, labels, queries, truth, config, seed=0)


def test_matched_accuracy_is_the_best_over_all_matchings():
    rng = np.random.default_rng(4)
    for n_clusters in (2, 3, 5):
        truth, found = rng.integers(0, 3, 40), rng.integers(0, n_clusters, 40)
        names = range(max(3, n_clusters))
        best = max(
            np.mean([order[c] == t for t, c in zip(truth, found, strict=True)])
            for order in itertools.permutations(names)
        )
        assert matched_accuracy(truth, found) == pytest.approx(best)


def test_agreement_by_hand():
    truth, found = np.array([0, 0, 0, 1, 1, 1]), np.array([5, 5, 2, 2, 2, 2])
    accuracy, nmi, _, ari = agreement(truth, found)
    assert accuracy == pytest.approx(5 / 6)
    # Joint counts 2, 1, 0, 3 of 6; both entropies and the mutual information in nats.
    h_truth = math.log(2)
    h_found = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    shared = 2 / 6 * math.log(2) + 1 / 6 * math.log(1 / 2) + 3 / 6 * math.log(3 / 2)
    assert nmi == pytest.approx(2 * shared / (h_truth + h_found))
    # Pairs together in both 1 + 3 = 4; in truth 6, in found 1 + 6 = 7, of 15.
    expected = 6 * 7 / 15
    assert ari == pytest.approx((4 - expected) / ((6 + 7) / 2 - expected))


def test_agreement_does_not_depend_on_names_and_knows_chance():
    rng = np.random.default_rng(5)
    truth, found = rng.integers(0, 10, 2000), rng.integers(0, 10, 2000)
    assert agreement(truth, found) == pytest.approx(agreement(truth, rng.permutation(10)[found]))
    _, _, ami, ari = agreement(truth, found)
    assert abs(ami) < 0.01
    assert abs(ari) < 0.01
    assert agreement(truth, (truth + 3) % 10) == pytest.approx((1, 1, 1, 1))


def test_separation_by_hand():
    rows, labels = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32), np.array([0, 0, 1, 1])
    silhouette, davies_bouldin = separation(rows, labels, most=100, seed=0)
    assert silhouette == pytest.approx(np.mean([1 - 1 / 10.5, 1 - 1 / 9.5, 1 - 1 / 9.5, 1 - 1 / 10.5]))
    assert davies_bouldin == pytest.approx((0.5 + 0.5) / 10)
    assert math.isnan(separation(rows, np.zeros(4, int), most=100, seed=0)[0])


def test_clusters_of_separate_classes_are_the_classes():
    rows, truth = separable(120, np.random.default_rng(6), 0.1)
    found = cluster(rows, truth, ClusterConfig(restarts=3), seed=0)
    assert (found.accuracy, found.nmi, found.ami, found.ari) == pytest.approx((1, 1, 1, 1))
    assert found.silhouette > 0.3
    mixed = cluster(
        torch.randn(120, 6, generator=torch.Generator().manual_seed(0)), truth, ClusterConfig(), 0
    )
    assert mixed.ari < 0.1
    assert mixed.silhouette < 0.1
    assert mixed.davies_bouldin > found.davies_bouldin
