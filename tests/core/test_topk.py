"""Exact top-k against a full lexicographic sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.core.errors import FirstlightError
from firstlight.core.topk import TopK, blocked_top_k, mask_excluded, top_k_rows


def oracle(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score descending, then id ascending, by sorting everything."""
    rows, n = scores.shape
    order = np.lexsort((np.broadcast_to(np.arange(n), scores.shape), -scores), axis=1)[:, :k]
    ids = np.full((rows, k), -1)
    best = np.full((rows, k), -np.inf, np.float32)
    best[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    ids[:, : order.shape[1]] = order
    ids[best == -np.inf] = -1
    return ids, best


def check(found: TopK, scores: np.ndarray, k: int) -> None:
    ids, best = oracle(scores, k)
    np.testing.assert_array_equal(found.ids.numpy(), ids)
    np.testing.assert_array_equal(found.scores.numpy(), best)
    assert found.ids.dtype == torch.int64
    assert found.scores.dtype == torch.float32


@pytest.mark.parametrize("kind", ["normal", "rounded", "constant", "few allowed", "heavy tail", "negative"])
@pytest.mark.parametrize("n", [1, 7, 300, 5000, 12345])  # above about 12 k columns the pruned way is taken
@pytest.mark.parametrize("k", [1, 3, 50])
def test_rows_equal_full_sort(kind: str, n: int, k: int) -> None:
    rng = np.random.default_rng(n * 100 + k)
    scores = rng.standard_normal((11, n)).astype(np.float32)
    if kind == "rounded":
        scores = np.round(scores * 3) / 3
    elif kind == "constant":
        scores[:] = 0.25
    elif kind == "few allowed":
        scores[rng.random(scores.shape) < 0.999] = -np.inf
    elif kind == "heavy tail":
        scores = np.exp(8 * scores)
    elif kind == "negative":
        scores = -np.abs(scores) - 1
    check(top_k_rows(torch.from_numpy(scores), k), scores, k)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_rows_with_ties(data: st.DataObject) -> None:
    """Scores from a handful of values, so that ties cross every boundary."""
    n = data.draw(st.integers(1, 400))
    k = data.draw(st.integers(1, 12))
    levels = data.draw(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, -1e-45, 3.5, np.inf, -np.inf, -3.4e38]),
            min_size=1,
            max_size=4,
        )
    )
    seed = data.draw(st.integers(0, 2**31))
    scores = np.random.default_rng(seed).choice(np.array(levels, np.float32), (3, n))
    check(top_k_rows(torch.from_numpy(scores), k), scores, k)


def test_both_ways_agree_on_ties() -> None:
    from firstlight.core.topk import _direct, _top_k

    scores = torch.from_numpy(np.random.default_rng(5).integers(0, 4000, (64, 4001)).astype(np.float32))
    pruned, direct = _top_k(scores, 20), _direct(scores, 20)
    assert torch.equal(pruned.ids, direct.ids)
    assert torch.equal(pruned.scores, direct.scores)


def test_expanded_and_transposed_and_double_input() -> None:
    row = torch.arange(2000.0).flip(0)
    assert torch.equal(top_k_rows(row.expand(5, -1), 3).ids, torch.arange(3).expand(5, -1))
    block = torch.randn(2000, 6, generator=torch.Generator().manual_seed(1))
    check(top_k_rows(block.T, 4), block.T.numpy(), 4)
    check(top_k_rows(block.T.double(), 4), block.T.numpy(), 4)


@pytest.mark.parametrize("n", [5, 9000])
def test_not_a_number_is_refused(n: int) -> None:
    scores = torch.zeros(3, n)
    scores[1, n // 2] = float("nan")
    with pytest.raises(FirstlightError, match="NaN"):
        top_k_rows(scores, 2)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="k >= 1"):
        top_k_rows(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match="cannot rank"):
        list(blocked_top_k(torch.zeros(2, 3), torch.zeros(4, 5), 1))
    with pytest.raises(ValueError, match="allowed must be"):
        list(blocked_top_k(torch.zeros(2, 3), torch.zeros(4, 3), 1, allowed=torch.ones(3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="exclude has"):
        list(
            blocked_top_k(
                torch.zeros(2, 3), torch.zeros(4, 3), 1, exclude=(np.zeros(2, int), np.zeros(0, int))
            )
        )


def test_empty_blocks() -> None:
    assert top_k_rows(torch.zeros(0, 5), 2).ids.shape == (0, 2)
    assert top_k_rows(torch.zeros(3, 0), 2).ids.tolist() == [[-1, -1]] * 3
    assert list(blocked_top_k(torch.zeros(0, 3), torch.zeros(4, 3), 1)) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [None, 1, 7, 64])
@pytest.mark.parametrize("restricted", [False, True])
def test_blocks_equal_one_masked_product(threads: int, block: int | None, restricted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    # Small integers: products are exact, so the block size cannot change a score, and ties abound.
    queries = torch.randint(-3, 4, (150, 8), generator=generator).float()
    keys = torch.randint(-3, 4, (9001, 8), generator=generator).float()
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 30, 150)
    counts[3] = 0
    indptr = np.r_[0, np.cumsum(counts)]
    items = np.concatenate([np.sort(rng.choice(9001, c, replace=False)) for c in counts]).astype(np.int32)
    allowed = torch.from_numpy(rng.random(9001) < 0.7) if restricted else None
    expected = (queries @ keys.T).numpy()
    for row in range(150):
        expected[row, items[indptr[row] : indptr[row + 1]]] = -np.inf
    if allowed is not None:
        expected[:, ~allowed.numpy()] = -np.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = list(blocked_top_k(queries, keys, 10, exclude=(indptr, items), allowed=allowed, block=block))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    covered = [i for rows, _ in parts for i in range(rows.start, rows.stop)]
    assert covered == list(range(150))
    found = TopK(torch.cat([p.ids for _, p in parts]), torch.cat([p.scores for _, p in parts]))
    check(found, expected, 10)


def test_everything_excluded_gives_empty_lists() -> None:
    exclude = (np.array([0, 4, 4]), np.arange(4))
    [(_, best)] = blocked_top_k(torch.ones(2, 2), torch.ones(4, 2), 3, exclude=exclude)
    assert best.ids.tolist() == [[-1, -1, -1], [0, 1, 2]]
    [(_, best)] = blocked_top_k(
        torch.ones(2, 2), torch.ones(4, 2), 3, exclude=exclude, allowed=torch.zeros(4, dtype=torch.bool)
    )
    assert best.ids.tolist() == [[-1, -1, -1]] * 2


def test_stopping_early_and_failing_inside_a_thread() -> None:
    queries, keys = torch.randn(4000, 4), torch.randn(3000, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows, _ = next(iter(blocked_top_k(queries, keys, 5, block=16)))
        assert rows == slice(0, 16)
        queries[2000] = float("nan")
        with pytest.raises(FirstlightError, match="NaN"):
            list(blocked_top_k(queries, keys, 5, block=16))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_inputs_stay_as_they_were() -> None:
    scores = torch.randn(4, 5000)
    copy = scores.clone()
    top_k_rows(scores, 5)
    assert torch.equal(scores, copy)


def test_mask_with_positions() -> None:
    scores = torch.zeros(2, 2)
    position = np.array([-1, 0, 1])
    mask_excluded(scores, (np.array([0, 1, 3]), np.array([0, 1, 2])), slice(0, 2), position)
    assert scores.tolist() == [[0, 0], [-np.inf, -np.inf]]
