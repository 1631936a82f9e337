"""Golden losses of every objective: what no change of the code may move unnoticed."""

from __future__ import annotations

import pytest
import torch

from firstlight.core.seeds import torch_stream
from firstlight.vision.ijepa import IJEPA, IJEPAConfig
from firstlight.vision.mae import MAE, MAEConfig
from firstlight.vision.objective import ImageBatch, Objective
from firstlight.vision.refiner import RefineStage
from refining import encoder, head_stage, images

#: Largest relative difference; weights and images are drawn in single precision, whose last digit is the processor's.
CLOSE = 1e-5


def losses(objective: Objective, name: str) -> list[float]:
    """The sum of the losses in three steps of plain gradient descent, in double precision."""
    found = []
    for step in range(3):
        batch = images(8, seed=step)
        batch = ImageBatch([view.double() for view in batch.views], batch.rows)
        total = torch.stack(list(objective.loss(batch, torch_stream(step, name)).values())).sum()
        total.backward()
        with torch.no_grad():
            for group in objective.parameter_groups():
                for parameter in group.parameters:
                    parameter -= 0.05 * group.lr_scale * parameter.grad
                    parameter.grad = None
        objective.after_step(step, 3)
        found.append(float(total.detach()))
    return found


def test_mae():
    config = MAEConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    found = losses(MAE(config, encoder(), torch_stream(0, "decoder")).double(), "mae")
    assert found == pytest.approx([1.2872064042, 1.2853012253, 1.2655949186], rel=CLOSE)


def test_i_jepa():
    config = IJEPAConfig(min_context=4, predictor_dim=16, predictor_depth=1, predictor_heads=2)
    found = losses(IJEPA(config, encoder(), torch_stream(0, "predictor")).double(), "i-jepa")
    assert found == pytest.approx([0.6689904332, 0.6001395583, 0.6189774275], rel=CLOSE)


def test_both_stages_of_refinement():
    heads = head_stage(head_top_k=3).double()
    assert losses(heads, "heads") == pytest.approx([8.4778981304, 7.4736716752, 8.7024674083], rel=CLOSE)
    assert losses(RefineStage(heads, 0.2), "refine") == pytest.approx(
        [6.8519887092, 6.4934138811, 6.9512791690], rel=CLOSE
    )


BLOCK = [
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
]


def narrow(name: str, last: str) -> list[str]:
    parts = [f"{name}_embed.weight", f"{name}_embed.bias", *(f"{name}_blocks.0.{part}" for part in BLOCK)]
    return parts + [f"{name}_{end}" for end in ("norm.weight", "norm.bias", f"{last}.weight", f"{last}.bias")]


def test_names_and_order_of_parameters():
    """Checkpoints hold weights by name, and moments by place: neither may change."""
    vit = encoder()
    inside = [name for name, _ in vit.named_parameters()]
    assert inside[:2] == ["cls_token", "patch_embed.proj.weight"]
    mae = MAE(MAEConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2), vit, torch_stream(0, "x"))
    own = [f"encoder.{name}" for name in inside]
    assert [name for name, _ in mae.named_parameters()] == ["mask_token", *own, *narrow("decoder", "pred")]
    assert set(mae.state_dict()) - {name for name, _ in mae.named_parameters()} == {"encoder.pos_embed"}
    config = IJEPAConfig(min_context=4, predictor_dim=16, predictor_depth=1, predictor_heads=2)
    jepa = IJEPA(config, vit, torch_stream(0, "x"))
    slow = [f"target.{name}" for name in inside]
    expected = ["mask_token", *own, *slow, *narrow("predictor", "proj")]
    assert [name for name, _ in jepa.named_parameters()] == expected
