"""Run by test_two_ranks.py, alone and as two Gloo ranks: the same numbers must come out.

Arguments: the file to write them to (rank 0 alone writes).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from firstlight.core import distributed
from firstlight.core.seeds import torch_stream
from firstlight.vision.heads import BatchNorm
from firstlight.vision.objective import ImageBatch
from firstlight.vision.refiner import HeadStage, RefineStage
from refining import head_stage, images


def mine(batch: ImageBatch) -> ImageBatch:
    part = distributed.own_slice(len(batch))
    return ImageBatch([view[part].double() for view in batch.views], batch.rows[part])


def updates(stage: HeadStage | RefineStage, name: str, steps: int) -> dict[str, Tensor]:
    """Plain gradient descent in double precision: losses, gradients of the last step, and the state at the end."""
    found = {}
    for step in range(steps):
        losses = stage.loss(mine(images(8, seed=step)), torch_stream(step, "draws"))
        sum(losses.values()).backward()
        parameters = [p for group in stage.parameter_groups() for p in group.parameters]
        distributed.average_gradients(parameters)
        for key, value in losses.items():
            found[f"{name}.loss{step}.{key}"] = distributed.gather(value[None]).mean()
        names = {id(p): key for key, p in stage.named_parameters()}
        with torch.no_grad():
            for p in parameters:
                if step == steps - 1:
                    found[f"{name}.grad.{names[id(p)]}"] = p.grad.clone()
                p -= 0.05 * p.grad
                p.grad = None
        stage.after_step(step, steps)
    return found | {f"{name}.{key}": value.clone() for key, value in stage.state_dict().items()}


def collectives() -> dict[str, Tensor]:
    """A function of all rows that mixes them by hand, and what one process says about it."""
    rows = torch.randn(6, 3, generator=torch_stream(0, "rows"), dtype=torch.float64)
    own = rows[distributed.own_slice(6)].clone().requires_grad_()
    everything = distributed.gather_with_gradient(own)
    # The mean over ranks of this rank's mean is the mean over all rows.
    loss = (torch.softmax(own @ everything.T, dim=1) @ everything).square().sum(dim=1).mean()
    loss.backward()
    transposed = distributed.gather_with_gradient(own.detach().T.contiguous(), dim=1)
    return {
        "gathered": distributed.gather(own),
        "transposed": transposed.clone(),
        # Each rank's loss counts its own rows alone: 1 / world brings the sum of ranks to the mean.
        "gradient": distributed.gather(own.grad) / distributed.world(),
    }


def normalisation() -> dict[str, Tensor]:
    rows = torch.randn(10, 4, generator=torch_stream(0, "norm"), dtype=torch.float64) * 3 + 1
    norm = BatchNorm(4).double()
    own = rows[distributed.own_slice(10)].clone().requires_grad_()
    out = norm(own)
    (out.pow(3).sum(dim=1).mean()).backward()
    distributed.average_gradients(norm.parameters())
    return {
        "norm.out": distributed.gather(out),
        "norm.gradient": distributed.gather(own.grad) / distributed.world(),
        "norm.weight": norm.weight.grad.clone(),
        "norm.mean": norm.running_mean.clone(),
        "norm.variance": norm.running_var.clone(),
    }


def main(target: str) -> None:
    torch.set_num_threads(1)
    with distributed.process_group():
        found = collectives() | normalisation()
        heads = head_stage(head_top_k=3).double()
        found |= updates(heads, "heads", 3)
        found |= updates(RefineStage(heads, 0.2), "refine", 3)
        if distributed.rank() == 0:
            save_file({name: value.detach().contiguous() for name, value in found.items()}, target)


if __name__ == "__main__":
    main(sys.argv[1])
