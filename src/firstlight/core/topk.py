"""Exact top-k of score blocks: ranking, k-NN graphs, probes and the serving index all use this one.

The order is score descending, then id ascending, also among the entries that just miss the list. Scores
that are minus infinity mean "not allowed" and are never returned.

How it is fast on a CPU. A row is cut into groups of a few dozen columns, and only the groups' maxima are
ranked. The k-th largest group maximum is a lower bound of the k-th best score (k groups hold an entry
that reaches it), so every entry of the answer, ties included, is at or above it, and hardly anything else
is: about 1.1 k survivors of 41,000. Survivors are packed into one integer, score first and id second, so
that one plain sort gives the order above. Groups are strided (columns j, j + g, j + 2g, …) since a maximum
over an outer axis runs at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.core.errors import FirstlightError

#: Compressed sparse rows over queries: ``indptr`` ``(n_queries + 1,)`` and key rows ``(nnz,)``.
Exclusion = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

_EMPTY = np.iinfo(np.int64).max  # a packed entry that no finite score can have
_LOWEST = np.finfo(np.float32).min
_BLOCK_BYTES = (
    20 << 20
)  # measured: larger score blocks fall out of the caches, smaller ones starve the product
_FINE, _COARSE = 8, 16  # columns per fine group, fine groups per coarse group
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
    block = scores.detach().to(torch.float32)
    if block.stride(1) != 1 or block.stride(0) < block.shape[1]:
        block = block.contiguous()  # an expanded or transposed view
    rows_at_once = max(1, _BLOCK_BYTES // (4 * max(1, block.shape[1])))
    if block.shape[0] <= rows_at_once:
        return _top_k(block, k, None)
    with _workers(block) as pool:
        parts = [_top_k(part, k, pool) for part in block.split(rows_at_once)]
    return TopK(torch.cat([part.ids for part in parts]), torch.cat([part.scores for part in parts]))


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

    One score buffer of ``(block, n_keys)`` is reused; queries × keys never exist at once.

    Args:
        queries: ``(n_queries, dim)`` float32.
        keys: ``(n_keys, dim)`` float32 on the same device.
        k: Length of the lists.
        exclude: Keys that must not be returned, per query row.
        allowed: ``(n_keys,)`` bool; other keys are never scored.
        block: Queries per block; chosen by the size of a score row if None.

    Yields:
        The slice of query rows and their lists; ids are rows of ``keys``.

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
    n = len(keys)
    block = block or max(1, min(1024, _BLOCK_BYTES // (4 * max(1, n)), len(queries)))
    buffer = torch.empty(min(block, len(queries)), n, dtype=queries.dtype, device=queries.device)
    transposed = keys.T.contiguous()  # measured: a few per cent faster than the transposed view
    with _workers(buffer) as pool:
        for start in range(0, len(queries), block):
            rows = slice(start, min(start + block, len(queries)))
            scores = buffer[: rows.stop - start]
            torch.mm(queries[rows], transposed, out=scores)
            if exclude is not None:
                mask_excluded(scores, exclude, rows, position)
            best = _top_k(scores.to(torch.float32), k, pool)
            if chosen is not None:
                known = best.ids >= 0
                ids = torch.where(known, chosen.to(best.ids.device)[best.ids.clamp(min=0)], best.ids)
                best = TopK(ids, best.scores)
            yield rows, best


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


def _workers(block: Tensor) -> ThreadPoolExecutor:
    """As many threads as torch itself may use; they start only when there is work for them."""
    return ThreadPoolExecutor(torch.get_num_threads() if block.device.type == "cpu" else 1)


def _top_k(scores: Tensor, k: int, pool: ThreadPoolExecutor | None) -> TopK:
    """Choose the way by size and device; all ways give the same answer."""
    rows, n = scores.shape
    group = n // (_GROUPS_PER_K * k)
    if scores.device.type != "cpu" or group < 2 or rows == 0:
        return _direct(scores, k)
    fine = _maxima(scores, min(_FINE, group))
    coarse = _maxima(fine, max(1, min(_COARSE, group // _FINE)))
    ids = torch.empty(rows, k, dtype=torch.int64)
    best = torch.empty(rows, k, dtype=torch.float32)
    arrays = [tensor.numpy() for tensor in (scores, fine, coarse, ids, best)]
    # numpy releases the interpreter lock, so slices of rows run side by side
    shares = 1 if pool is None else max(1, min(torch.get_num_threads(), rows // 16))
    bounds = np.linspace(0, rows, shares + 1).astype(int)
    jobs = [[array[a:b] for array in arrays] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    if pool is None or shares == 1:
        for job in jobs:
            _pruned(*job)
    else:
        list(pool.map(lambda job: _pruned(*job), jobs))
    return TopK(ids, best)


def _maxima(x: Tensor, size: int) -> Tensor:
    """Maxima over strided groups: ``(rows, n)`` to ``(rows, g)`` with g = ⌈n / size⌉, group j = j, j+g, …"""
    if size == 1:
        return x
    n = x.shape[1]
    groups = -(-n // size)
    full = n // groups
    out = x[:, : full * groups].unflatten(1, (full, groups)).amax(1)
    rest = n - full * groups
    if rest:
        torch.maximum(out[:, :rest], x[:, full * groups :], out=out[:, :rest])
    return out


def _pruned(
    scores: FloatArray, fine: FloatArray, coarse: FloatArray, ids: IntArray, best: FloatArray
) -> None:
    """Fill ``ids`` and ``best`` ``(rows, k)`` from the entries at or above the k-th coarse maximum."""
    rows, n = scores.shape
    k, groups = ids.shape[1], fine.shape[1]
    if np.isnan(coarse).any():
        raise _not_a_number()
    bound = np.partition(coarse, coarse.shape[1] - k, axis=1)[:, coarse.shape[1] - k]
    bound = np.maximum(bound, _LOWEST)  # so that minus infinity never survives
    hits = np.flatnonzero(fine >= bound[:, None])
    row = hits // groups
    column = hits - row * groups
    stride = scores.strides[0] // 4
    flat = np.lib.stride_tricks.as_strided(scores, ((rows - 1) * stride + n,), (4,), writeable=False)
    size = -(-n // groups)
    # The last group may reach past the row's end: what is read there is dropped by the test on columns.
    members = (row * stride + column)[:, None] + np.arange(size) * groups
    values = flat.take(members, mode="clip")
    kept = np.flatnonzero(values >= bound[row][:, None])
    source = kept // size
    column = column[source] + (kept - source * size) * groups
    row, value = row[source], values.reshape(-1)[kept]
    if size * groups > n:
        inside = column < n
        row, column, value = row[inside], column[inside], value[inside]
    counts = np.bincount(row, minlength=rows)
    offsets = np.cumsum(counts) - counts
    table = np.full((rows, max(k, counts.max(initial=0))), _EMPTY)
    # Both filters keep row order, so a survivor's place in its row is its place in the list.
    table[row, np.arange(len(row)) - offsets[row]] = _pack(value, column)
    if table.shape[1] > 4 * k:
        table = np.partition(table, k - 1, axis=1)
        table = table[:, :k]
    table.sort(axis=1)
    _unpack(table[:, :k], ids, best)


def _pack(score: FloatArray, column: IntArray) -> IntArray:
    """One int64 per entry whose ascending order is score descending, then column ascending."""
    bits = (score + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes -0.0 equal to 0.0
    bits ^= (bits >> 63) & 0x7FFFFFFF  # sign and magnitude to two's complement
    packed: IntArray = (~bits << 32) + column
    return packed


def _unpack(packed: IntArray, ids: IntArray, best: FloatArray) -> None:
    """Invert :func:`_pack` into ``ids`` and ``best``; empty entries become -1 and minus infinity."""
    bits = (~packed) >> 32
    bits ^= (bits >> 63) & 0x7FFFFFFF
    best[:] = bits.astype(np.int32).view(np.float32)
    np.bitwise_and(packed, 0xFFFFFFFF, out=ids)
    empty = packed == _EMPTY
    ids[empty] = -1
    best[empty] = -np.inf


def _direct(scores: Tensor, k: int) -> TopK:
    """The same answer by packing every entry: short rows, and devices other than the CPU."""
    rows, n = scores.shape
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
