"""Run by test_two_ranks.py, alone and as two Gloo ranks: the same numbers must come out.

Arguments: the file to write them to (rank 0 alone writes), and a Parquet file of images of which some are torn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from firstlight.core import distributed
from firstlight.core.seeds import torch_stream
from firstlight.training.encoder_config import build_pretrain_config
from firstlight.training.pretrain import pretrain
from firstlight.vision.heads import BatchNorm
from firstlight.vision.images import open_images
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


def texts() -> dict[str, Tensor]:
    """What each rank says, of any length, joined: a process alone says it all at once."""
    words = ["", "ein Bär 🐻", "x" * 300, "{}"]
    said = distributed.gather_texts("".join(words[distributed.own_slice(4)]))
    return {"texts": torch.tensor(list("".join(said).encode()))}


def flags() -> dict[str, Tensor]:
    """The last rank alone sets one."""
    last = distributed.rank() == distributed.world() - 1
    return {"flags": torch.tensor([distributed.any_rank(last), distributed.any_rank(False)])}


def torn_images(source: str, out: str) -> None:
    """A short pre-training whose result names every image that any rank could not use."""
    images = open_images(source)
    shape = ["encoder.image_size=[8,8]", "encoder.patch_size=4", "encoder.dim=8", "encoder.depth=1"]
    small = ["encoder.heads=1", "mae.decoder_dim=8", "mae.decoder_heads=1", "mae.decoder_depth=1"]
    run = ["training.batch_size=8", "training.epochs=1", "training.cache_mb=0"]
    config = build_pretrain_config(
        images, overrides=[*shape, *small, *run, "training.checkpoint_minutes=1e-9"]
    )
    told: list[str] = []
    pretrain(
        images,
        config,
        out,
        emit=lambda name, **values: told.append(values["id"]) if name == "unusable" else None,
    )
    if distributed.rank() == 0:
        (Path(out) / "told.json").write_text(json.dumps(sorted(told)))


def threads() -> set[str]:
    """Names of this process's threads, where the system tells them."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def main(target: str, source: str) -> None:
    torch.set_num_threads(1)
    with distributed.process_group():
        found = collectives() | normalisation() | texts() | flags()
        torn_images(source, f"{target}-run")
        heads = head_stage(head_top_k=3).double()
        found |= updates(heads, "heads", 3)
        found |= updates(RefineStage(heads, 0.2), "refine", 3)
        if distributed.rank() == 0:
            save_file({name: value.detach().contiguous() for name, value in found.items()}, target)
    # A thread of Gloo's that outlives the group may abort the interpreter on its way out.
    assert "pt_gloo_runloop" not in threads()


if __name__ == "__main__":
    main(*sys.argv[1:])
