"""Several processes that train one model: the few collective operations that training needs.

Without a process group every function here is the identity, so callers need no second code path. Each rank holds an
equal slice of the batch; results stand in rank order, so that W ranks compute what one process computes on the
whole batch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from firstlight.core.ranks import note_joined

#: Gradients travel in buckets of at most this many elements (64 MB of float32).
_BUCKET_ELEMENTS = 2**24


@contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """Join the group that ``torchrun`` describes in the environment; nothing happens in a process on its own.

    That it was joined is kept past its end (:mod:`firstlight.core.ranks`), for who says what came out.

    Args:
        device: ``cuda`` talks through NCCL and takes the GPU of the local rank, anything else through Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Its functions take the group that exists when it is imported for their default argument. Imported later (by the
    # first optimiser, on the way to the compiler) it would keep this group past its end, and with it Gloo's threads:
    # one that frees a tensor while the interpreter goes down aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if cuda else "gloo")
    note_joined(rank(), world())
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 on its own."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_slice(n: int) -> slice:
    """This rank's part of ``n`` rows that are shared out in rank order.

    Raises:
        ValueError: ``n`` is no multiple of the number of processes.
    """
    if n % world():
        raise ValueError(f"{n} rows cannot be shared out evenly among {world()} processes")
    size = n // world()
    return slice(rank() * size, (rank() + 1) * size)


def gather(tensor: Tensor, dim: int = 0) -> Tensor:
    """The equally shaped tensors of all ranks, concatenated along ``dim`` in rank order, without gradient."""
    tensor = tensor.detach()
    if world() == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts, dim=dim)


def gather_texts(text: str) -> list[str]:
    """The texts of all ranks, of any lengths, in rank order."""
    if world() == 1:
        return [text]
    content = torch.frombuffer(bytearray(text.encode() + b"."), dtype=torch.uint8).to(_where())
    sizes = gather(torch.tensor([len(content)], device=content.device)).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=content.device)
    padded[: len(content)] = content
    rows = gather(padded[None]).cpu().numpy()
    return [rows[i, : size - 1].tobytes().decode() for i, size in enumerate(sizes)]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on some rank: the same answer on all of them."""
    return flag if world() == 1 else bool(gather(torch.tensor([flag], device=_where())).any())


def _where() -> str:
    """Where tensors must be that the group can exchange."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def gather_with_gradient(tensor: Tensor, dim: int = 0) -> Tensor:
    """:func:`gather` whose gradient is that of the **sum** of all ranks' losses, cut to the own slice."""
    if world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor, dim)  # type: ignore[no-untyped-call]
    return gathered


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Elementwise sum over ranks; the gradient is that of the sum of all ranks' losses."""
    if world() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks: with equal slices, that of the mean over the whole batch.

    Args:
        parameters: The same ones in the same order on every rank; those without a gradient are left alone and
            must lack it everywhere.
    """
    if world() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        full = sum(g.numel() for g in bucket) + parameter.grad.numel() > _BUCKET_ELEMENTS
        if bucket and (full or bucket[0].dtype != parameter.grad.dtype):
            _average(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _average(bucket)


def _average(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, tensor.shape[dim]
        return gather(tensor, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(ctx.dim, rank() * ctx.size, ctx.size), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return (total,)
