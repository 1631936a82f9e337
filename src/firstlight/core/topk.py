"""Exact top-k of score blocks: ranking, k-NN graphs, probes and the serving index all use this one.

The order is score descending, then id ascending, also among the entries that just miss the list. Scores
that are minus infinity mean "not allowed" and are never returned.

How it is fast on a CPU. A row is cut into groups of a few dozen columns, and only the groups' maxima are
ranked. The k-th largest group maximum is a lower bound of the k-th best score (k groups hold an entry
that reaches it), so every entry of the answer, ties included, is at or above it, and hardly anything else
is: about 1.1 k survivors of 41,000. Survivors are packed into one integer, score first and id second, so
that one plain sort gives the order above. Groups are strided (columns j, j + g, j + 2g, …) since a maximum
over an outer axis runs at the speed of memory.

Blocks are shared out to as many threads as torch may use, each with its own score buffer and one-threaded
products: no thread ever waits for another, which on a busy machine costs more than the work itself.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.core.errors import FirstlightError, InputError
from firstlight.core.threads import in_threads

#: Compressed sparse rows over queries: ``indptr`` ``(n_queries + 1,)`` and key rows ``(nnz,)``.
Exclusion = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

Job = TypeVar("Job")
Result = TypeVar("Result")

_EMPTY = np.iinfo(np.int64).max  # a packed entry that no finite score can have
_LOWEST = np.finfo(np.float32).min
_BLOCK_BYTES = (
    20 << 20
)  # measured: larger score blocks fall out of the caches, smaller ones starve the product
_SLICE_BYTES = 12 << 20  # of a block, pruned at once: its group maxima then stay in a core's own cache
_DIRECT_BYTES = 1 << 20  # of scores whose entries are packed at once
_SERIAL_BYTES = 4 << 20  # not worth starting threads for less
_FINE, _COARSE = 8, 16  # columns per fine group, fine groups per coarse group
_PAD = _FINE * _COARSE  # rows of a multiple of this many columns fall into whole, aligned groups
_GROUPS_PER_K = 6  # fewer groups than this many times k let too many survivors through


@dataclass(frozen=True)
class TopK:
    """The best k entries of each row, best first.

    Attributes:
        ids: ``(rows, k)`` int64; -1 where a row has fewer than k allowed entries.
        scores: ``(rows, k)`` float32; minus infinity where the id is -1.
    """

    ids: Tensor
    scores: Tensor


def list_length(k: int, n: int) -> int:
    """Length of lists of the best k of n keys: no longer than there are keys, whatever was asked for.

    Lists are laid out at full length, so one of a billion would not fit into memory.

    Raises:
        InputError: k is not a whole number above zero.
    """
    try:
        asked = operator.index(k)
    except TypeError:
        asked = 0
    if asked < 1:
        raise InputError(f"k is {k!r}", hint="give a whole number above zero")
    return max(1, min(asked, n))


def top_k_rows(scores: Tensor, k: int) -> TopK:
    """The k best columns of every row, exactly, ties by smaller column first.

    Args:
        scores: ``(rows, n)`` floats; minus infinity marks entries that must not be returned. Compared as
            float32.
        k: Length of the lists; may exceed ``n``.

    Returns:
        Lists padded with id -1 and score minus infinity.

    Raises:
        ValueError: ``scores`` is not two-dimensional or ``k < 1``.
        FirstlightError: A score is NaN.
    """
    if scores.ndim != 2 or k < 1:
        raise ValueError(f"need a (rows, n) block and k >= 1, got shape {tuple(scores.shape)} and k = {k}")
    block = scores.detach().to(torch.float32).contiguous()
    size = _rows_in(_BLOCK_BYTES, block.shape[1])
    slices = [block[start : start + size] for start in range(0, max(1, len(block)), size)]
    parts = list(_in_threads(lambda part: _top_k(part, k), slices, block))
    return _joined(parts)


def blocked_top_k(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    exclude: Exclusion | None = None,
    allowed: Tensor | None = None,
    block: int | None = None,
) -> Iterator[tuple[slice, TopK]]:
    """The k keys with the largest inner product for every query, block by block.

    Every thread reuses one score buffer of ``(block, n_keys)``; queries × keys never exist at once.

    Args:
        queries: ``(n_queries, dim)`` float32.
        keys: ``(n_keys, dim)`` float32 on the same device.
        k: Length of the lists.
        exclude: Keys that must not be returned, per query row.
        allowed: ``(n_keys,)`` bool; other keys are never scored.
        block: Queries per block; chosen by the size of a score row if None.

    Yields:
        The slice of query rows and their lists, in order; ids are rows of ``keys``.

    Raises:
        ValueError: Shapes do not fit.
        FirstlightError: A score is NaN.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or k < 1:
        raise ValueError(f"cannot rank {tuple(keys.shape)} keys for {tuple(queries.shape)} queries, k = {k}")
    if exclude is not None and len(exclude[0]) != len(queries) + 1:
        raise ValueError(f"exclude has {len(exclude[0]) - 1} rows for {len(queries)} queries")
    queries, keys = queries.detach(), keys.detach()
    chosen, position = _selection(allowed, len(keys))
    if chosen is not None:
        keys = keys[chosen.to(keys.device)]
    n, width = len(keys), -(-len(keys) // _PAD) * _PAD
    size = block or min(1024, _rows_in(_BLOCK_BYTES, width))
    transposed = keys.new_zeros(keys.shape[1], width)
    transposed[:, :n] = keys.T  # measured: faster than the transposed view
    own = threading.local()

    def search(rows: slice) -> tuple[slice, TopK]:
        if not hasattr(own, "buffer"):
            own.buffer = queries.new_empty(min(size, len(queries)), width)
        scores: Tensor = own.buffer[: rows.stop - rows.start]
        torch.mm(queries[rows], transposed, out=scores)
        scores[:, n:] = float("-inf")
        if exclude is not None:
            mask_excluded(scores, exclude, rows, position)
        best = _top_k(scores.to(torch.float32), k)
        if chosen is not None and n:
            ids = torch.where(best.ids >= 0, chosen.to(best.ids.device)[best.ids.clamp(min=0)], best.ids)
            best = TopK(ids, best.scores)
        return rows, best

    starts = range(0, len(queries), size)
    yield from _in_threads(search, [slice(a, min(a + size, len(queries))) for a in starts], queries, n)


def mask_excluded(scores: Tensor, exclude: Exclusion, rows: slice, position: IntArray | None = None) -> None:
    """Write minus infinity over the excluded entries of one block, in place.

    Args:
        scores: ``(rows.stop - rows.start, n)``, contiguous.
        exclude: Excluded columns for all query rows.
        rows: Which query rows the block holds.
        position: ``(n_keys,)`` column of each key in the block, -1 for keys outside it; None if they agree.
    """
    indptr, items = exclude
    bounds = np.asarray(indptr[rows.start : rows.stop + 1], np.int64)
    columns = np.asarray(items[bounds[0] : bounds[-1]], np.int64)
    owners = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    if position is not None:
        columns = position[columns]
        owners, columns = owners[columns >= 0], columns[columns >= 0]
    flat = torch.from_numpy(owners * scores.shape[1] + columns).to(scores.device)
    scores.view(-1).index_fill_(0, flat, float("-inf"))


def _selection(allowed: Tensor | None, n: int) -> tuple[Tensor | None, IntArray | None]:
    """The rows of the allowed keys, ascending, and each key's position among them (-1: not allowed)."""
    if allowed is None:
        return None, None
    if allowed.shape != (n,) or allowed.dtype != torch.bool:
        raise ValueError(f"allowed must be ({n},) bool, got {tuple(allowed.shape)} {allowed.dtype}")
    chosen = allowed.nonzero().squeeze(1).cpu()
    position = np.full(n, -1, np.int64)
    position[chosen.numpy()] = np.arange(len(chosen))
    return chosen, position


def _rows_in(size: int, n: int) -> int:
    """The largest power of two of rows of ``n`` floats within ``size`` bytes."""
    return int(2 ** max(0, (size // (4 * max(1, n))).bit_length() - 1))


def _joined(parts: list[TopK]) -> TopK:
    return TopK(torch.cat([part.ids for part in parts]), torch.cat([part.scores for part in parts]))


def _in_threads(
    work: Callable[[Job], Result], jobs: list[Job], like: Tensor, n: int | None = None
) -> Iterator[Result]:
    """``map(work, jobs)`` in order, on as many threads as torch may use, a few jobs ahead of the reader.

    Args:
        work: Called with one job at a time per thread.
        jobs: The jobs.
        like: ``(rows, ·)``; its device, and with ``n`` (its width if None) the amount of work.
        n: Columns of the scores.
    """
    threads = min(torch.get_num_threads(), len(jobs))
    small = 4 * len(like) * (like.shape[1] if n is None else n) < _SERIAL_BYTES
    if threads < 2 or small or like.device.type != "cpu":
        yield from map(work, jobs)
        return
    yield from in_threads(work, jobs, threads, ahead=2)


def _top_k(scores: Tensor, k: int) -> TopK:
    """Choose the way by size and device; all ways give the same answer."""
    rows, n = scores.shape
    group = n // (_GROUPS_PER_K * k)
    if scores.device.type != "cpu" or group < 2 or rows == 0:
        return _direct(scores, k)
    ids = torch.empty(rows, k, dtype=torch.int64)
    best = torch.empty(rows, k, dtype=torch.float32)
    block = scores.numpy()
    fine = _maxima(block, min(_FINE, group))
    coarse = _maxima(fine, max(1, min(_COARSE, group // _FINE)))
    if _prune(block, fine, coarse, ids.numpy(), best.numpy()):
        return TopK(ids, best)
    return _direct(scores, k)


def _maxima(x: FloatArray, size: int) -> FloatArray:
    """Maxima over the strided groups {j, j + g, j + 2g, …} with g = ⌈n / size⌉: ``(rows, n)`` to ``(rows, g)``."""
    if size == 1:
        return x
    rows, n = x.shape
    groups = -(-n // size)
    full = n // groups
    strides = (x.strides[0], groups * x.strides[1], x.strides[1])
    members = np.lib.stride_tricks.as_strided(x, (rows, full, groups), strides, writeable=False)
    out: FloatArray = members.max(axis=1)
    rest = n - full * groups
    if rest:
        np.maximum(out[:, :rest], x[:, full * groups :], out=out[:, :rest])
    return out


def _prune(scores: FloatArray, fine: FloatArray, coarse: FloatArray, ids: IntArray, best: FloatArray) -> bool:
    """Fill ``ids`` and ``best`` ``(rows, k)`` from the entries at or above the k-th coarse maximum.

    False, and nothing is filled, if ties let so many entries through that pruning does not pay.
    """
    rows, n = scores.shape
    k, groups = ids.shape[1], fine.shape[1]
    if np.isnan(coarse).any():
        raise _not_a_number()
    bound = np.partition(coarse, coarse.shape[1] - k, axis=1)[:, coarse.shape[1] - k]
    bound = np.maximum(bound, _LOWEST)  # so that minus infinity never survives
    hits = np.flatnonzero(fine >= bound[:, None])
    if len(hits) > fine.size // 8:
        return False
    row, column = np.divmod(hits, groups)
    flat = scores.reshape(-1)
    first = row * n + column
    # What the last group reads past its row's end is dropped below by the test on columns.
    size = -(-n // groups)
    values = np.empty((size, len(first)), np.float32)
    for member in range(size):
        flat[member * groups :].take(first, mode="clip", out=values[member])
    survives = np.ascontiguousarray((values >= bound[row]).T)  # entry by entry, so in row order again
    entry, member_of = np.divmod(np.flatnonzero(survives), size)
    value, row, column = values[member_of, entry], row[entry], column[entry] + member_of * groups
    if size * groups > n:
        inside = column < n
        row, column, value = row[inside], column[inside], value[inside]
    counts = np.bincount(row, minlength=rows)
    width = max(k, int(counts.max()))
    table = np.full(rows * width, _EMPTY)
    # A survivor's place: its row's start in the table, plus its rank among the row's survivors.
    shift = np.arange(rows) * width - (np.cumsum(counts) - counts)
    table[shift[row] + np.arange(len(row))] = _pack(value, column)
    table = table.reshape(rows, width)
    if width > 4 * k:
        table = np.partition(table, k - 1, axis=1)[:, :k]
    table.sort(axis=1)
    _unpack(table[:, :k], ids, best)
    return True


def _pack(score: FloatArray, column: IntArray) -> IntArray:
    """One int64 per entry whose ascending order is score descending, then column ascending."""
    bits = (score + np.float32(0)).view(np.int32)  # + 0 makes -0.0 equal to 0.0
    bits ^= (bits >> 31) & 0x7FFFFFFF  # sign and magnitude to two's complement
    packed = (~bits).astype(np.int64)
    packed <<= 32
    packed += column
    return packed


def _unpack(packed: IntArray, ids: IntArray, best: FloatArray) -> None:
    """Invert :func:`_pack` into ``ids`` and ``best``; empty entries become -1 and minus infinity."""
    bits = ~(packed >> 32).astype(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    best[:] = bits.view(np.float32)
    np.bitwise_and(packed, 0xFFFFFFFF, out=ids)
    if packed[:, -1].max() == _EMPTY:
        empty = packed == _EMPTY
        ids[empty] = -1
        best[empty] = -np.inf


def _direct(scores: Tensor, k: int) -> TopK:
    """The same answer by packing every entry: short rows, and devices other than the CPU."""
    rows, n = scores.shape
    step = _rows_in(_DIRECT_BYTES, n)
    if rows > step and scores.device.type == "cpu":  # packed entries take several times the scores' memory
        parts = [_direct(scores[start : start + step], k) for start in range(0, rows, step)]
        return _joined(parts)
    if bool(scores.isnan().any()):
        raise _not_a_number()
    bits = (scores + 0).view(torch.int32).to(torch.int64)
    bits = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    columns = torch.arange(n, device=scores.device)
    packed = (bits << 32) + (0xFFFFFFFF - columns)
    top = packed.topk(min(k, n), dim=1).values
    ids = torch.full((rows, k), -1, device=scores.device)
    best = torch.full((rows, k), float("-inf"), device=scores.device)
    found = 0xFFFFFFFF - (top & 0xFFFFFFFF)
    values = scores.gather(1, found)
    allowed = values > float("-inf")
    ids[:, : min(k, n)] = torch.where(allowed, found, -1)
    best[:, : min(k, n)] = values
    return TopK(ids, best)


def _not_a_number() -> FirstlightError:
    return FirstlightError("a score is not a number (NaN): the vectors hold NaN, or infinities of both signs")
