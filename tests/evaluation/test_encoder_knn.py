"""k-NN classification of encoder features: known answers, an independent implementation, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from firstlight.evaluation.encoder_knn import knn_classify, paired_z, standard_error, standardised

#: Mean zero and equal deviations, so that standardising turns no direction.
CROSS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
LABELS = np.array([1, 0, 2, 0])


def classify(queries, ks, temperature=0.07, labels=LABELS):
    return knn_classify(CROSS, labels, torch.tensor(queries), 3, ks, temperature)


def test_one_neighbour_gives_its_class():
    found = classify([[2.0, 1.0], [1.0, 2.0], [-3.0, 0.1], [0.1, -1.0]], [1])
    assert found[1].tolist() == [1, 0, 2, 0]


def test_all_neighbours_vote_by_cosine_and_temperature():
    # Query (2, 1): cosines .894, .447, −.894, −.447; class 0 holds the second and the fourth.
    assert classify([[2.0, 1.0]], [4])[4].tolist() == [1]
    assert classify([[2.0, 1.0]], [4], math.inf)[4].tolist() == [0]
    # exp(.894 / T) against exp(.447 / T) + exp(−.447 / T): with x = .447 / T they meet where
    # exp(2x) = exp(x) + exp(−x), at x = .3822.
    assert classify([[2.0, 1.0]], [4], 0.4472 / 0.39)[4].tolist() == [1]
    assert classify([[2.0, 1.0]], [4], 0.4472 / 0.37)[4].tolist() == [0]


def test_equal_cosines_go_to_the_smaller_row_and_equal_votes_to_the_smaller_class():
    assert classify([[1.0, 1.0]], [1])[1].tolist() == [1]
    assert classify([[1.0, 1.0]], [2])[2].tolist() == [0]


def test_a_k_above_the_bank_is_left_out():
    assert list(classify([[1.0, 0.0]], [2, 4, 5])) == [2, 4]
    assert classify([[1.0, 0.0]], [5]) == {}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 4, 300), rng.integers(0, 4, 90)
    centres = rng.normal(size=(4, 12))
    bank, queries = (
        torch.from_numpy((centres[t] + 1.5 * rng.normal(size=(len(t), 12))).astype(np.float32))
        for t in (labels, truth)
    )
    return bank, labels, queries


def test_it_agrees_with_scikit_learn(data):
    bank, labels, queries = data
    found = knn_classify(bank, labels, queries, 4, [1, 10, 37, 300], 0.1)
    x, q = bank.double().numpy(), queries.double().numpy()
    mean, deviation = x.mean(axis=0), x.std(axis=0, ddof=1) + 1e-6
    for k, predicted in found.items():
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
        )
        expected = model.fit((x - mean) / deviation, labels).predict((q - mean) / deviation)
        assert predicted.tolist() == expected.tolist()


def test_scale_and_shift_of_a_dimension_do_not_matter(data):
    bank, labels, queries = data
    rng = torch.Generator().manual_seed(1)
    scale, shift = 0.25 + 4 * torch.rand(12, generator=rng), 6 * torch.rand(12, generator=rng) - 3
    before = knn_classify(bank, labels, queries, 4, [5, 20])
    after = knn_classify(bank * scale + shift, labels, queries * scale + shift, 4, [5, 20])
    assert all((before[k] == after[k]).all() for k in (5, 20))


def test_a_large_temperature_counts_heads(data):
    bank, labels, queries = data
    two = labels % 2  # and an odd k: no ties
    heads = knn_classify(bank, two, queries, 2, [9], math.inf)[9]
    assert (knn_classify(bank, two, queries, 2, [9], 1e6)[9] == heads).all()
    assert (knn_classify(bank, two, queries, 2, [9], 0.05)[9] != heads).any()
    sharp = knn_classify(bank, labels, queries, 4, [10], 1e-3)[10]
    assert (sharp == knn_classify(bank, labels, queries, 4, [1])[1]).all()
    everyone = knn_classify(bank, labels, queries, 4, [300], math.inf)[300]
    assert set(everyone.tolist()) == {int(np.bincount(labels).argmax())}


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_size_of_a_block_does_not_matter(data, block):
    bank, labels, queries = data
    whole = knn_classify(bank, labels, queries, 4, [1, 10])
    cut = knn_classify(bank, labels, queries, 4, [1, 10], block=block)
    assert all((whole[k] == cut[k]).all() for k in whole)


def test_standardising_uses_the_bank_alone_and_drops_what_is_constant():
    bank = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    rows, queries = standardised(bank, torch.tensor([[2.0, 6.0]]))
    assert torch.allclose(rows, torch.tensor([[-0.5, 0.0], [0.5, 0.0]]) * math.sqrt(2), atol=1e-5)
    assert queries.tolist() == [[0.0, 0.0]]


def test_standard_error_and_paired_z():
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(1.0, 7) == 0.0
    before = np.array([True] * 5 + [False] * 9 + [True])
    after = np.array([True] * 5 + [True] * 9 + [False])
    assert paired_z(before, after) == pytest.approx(8 / math.sqrt(10))
    assert paired_z(after, before) == pytest.approx(-8 / math.sqrt(10))
    assert paired_z(before, before) == 0.0
