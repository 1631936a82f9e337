"""Work in threads: order, how far ahead, what comes of errors and of torch's own threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from firstlight.core.threads import in_threads


def test_order_is_kept_and_each_job_has_one_torch_thread():
    seen = set()

    def work(n):
        time.sleep(0.002 * (n % 3))
        seen.add(threading.current_thread().name)
        return n * n, torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(in_threads(work, range(20), 3)) == [(n * n, 1) for n in range(20)]
        assert len(seen) == 3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(in_threads(work, [], 2)) == []


@pytest.mark.parametrize("ahead", [1, 4])
def test_no_further_ahead_than_asked(ahead):
    asked = []
    made = in_threads(lambda n: asked.append(n), range(1000), 2, ahead=ahead)
    next(made)
    made.close()
    assert len(asked) <= 2 * ahead + 1


def test_an_error_comes_out_where_its_result_would():
    made = in_threads(lambda n: 1 // n, [1, 0, 1], 2)
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
