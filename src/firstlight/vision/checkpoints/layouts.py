"""Names in foreign checkpoints to ours.

A :class:`Layout` is told by a name that only it has. Wrappers of training code (``module.``, ``backbone.``, …) come off
first; then names are dropped (decoders, heads) or rewritten, by pattern. A name that no pattern drops and that our
transformer does not know is an error later on: nothing is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firstlight.core.errors import InputError
from firstlight.vision.checkpoints.containers import Container


@dataclass(frozen=True)
class Layout:
    """How one family of code names its weights.

    Attributes:
        name: For people.
        mark: Pattern of a name that only this layout has.
        drop: Patterns of names that are no part of the encoder.
        rename: Patterns and what takes their places, all tried in order.
        norm: Form of the blocks.
        eps: ε of its layer norms.
        fixed_positions: Whether positions are never trained, whatever they are.
    """

    name: str
    mark: str
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    norm: str = "pre"
    eps: float = 1e-6
    fixed_positions: bool = False


#: Source of files whose names and wrapper are MAE's, and those of others' as well (dBOT, DeiT).
LIKE_MAE = "MAE or a layout like it"
_IMAGE = r"modality_encoders\.IMAGE\."
_LAYER = r"^encoder\.layer\.(\d+)\."

#: The first layout whose mark is found counts; the last one fits MAE, MAE-WS, dBOT, CrossMAE, iBOT, DINO, Mugs, I-JEPA,
#: Layer-grafting and timm, which all name their blocks alike.
LAYOUTS = (
    Layout(
        "data2vec 2.0",
        mark=rf"^{_IMAGE}",
        drop=(r"decoder", r"^_ema(\.|$)", r"^head\.", r"^fc_norm\."),
        rename=(
            (rf"^{_IMAGE}local_encoder\.proj\.", "patch_embed.proj."),
            (rf"^{_IMAGE}extra_tokens$", "cls_token"),
            (rf"^{_IMAGE}fixed_positional_encoder\.positions$", "pos_embed"),
            (rf"^{_IMAGE}context_encoder\.norm\.", "embed_norm."),
        ),
        norm="post",
        fixed_positions=True,
    ),
    Layout(
        "MIM-Refiner",
        mark=r"^(cls_tokens\.tokens|pos_embed\.embed)$",
        drop=(r"^head\.",),
        rename=((r"^cls_tokens\.tokens$", "cls_token"), (r"^pos_embed\.embed$", "pos_embed")),
        fixed_positions=True,
    ),
    Layout(
        "Hugging Face",
        mark=r"^embeddings\.patch_embeddings\.projection\.",
        drop=(r"^pooler\.", r"^classifier\.", r"^decoder\.", r"^embeddings\.mask_token$"),
        rename=(
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (rf"{_LAYER}attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
            (rf"{_LAYER}attention\.output\.dense\.", r"blocks.\1.attn.proj."),
            (rf"{_LAYER}layernorm_before\.", r"blocks.\1.norm1."),
            (rf"{_LAYER}layernorm_after\.", r"blocks.\1.norm2."),
            (rf"{_LAYER}intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
            (rf"{_LAYER}output\.dense\.", r"blocks.\1.mlp.fc2."),
            (rf"{_LAYER}layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
            (rf"{_LAYER}(norm1|norm2|mlp\.fc1|mlp\.fc2)\.", r"blocks.\1.\2."),
            (r"^layernorm\.", "norm."),
        ),
        eps=1e-12,
    ),
    Layout(
        "MAE/timm",
        mark=r"^patch_embed\.proj\.weight$",
        drop=(
            r"^decoder", r"^mask_token$", r"^masked_embed$",  # MAE and its kin; iBOT
            r"^wfm\.", r"^dec_norms\.",  # CrossMAE
            r"^(head|dino_head|ibot_head|head_drop)\.",
            r"^(relation_blocks|group_head|instance_head)\.",  # Mugs
        ),
        rename=((r"^register_tokens$", "reg_token"),),
    ),
)  # fmt: skip


@dataclass
class Renamed:
    """Weights under our names.

    Attributes:
        layout: What they were named after.
        source: The likely origin, for people and licences.
        tensors: By our names; names that match nothing are among them.
        dropped: Names in the file that are no part of the encoder.
        strays: Names of other things beside the weights that no pattern drops.
        lacks_norm: Whether this kind of file has no final norm because its decoder read raw outputs (CrossMAE).
    """

    layout: Layout
    source: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    lacks_norm: bool = False


def rename(container: Container, layouts: Sequence[Layout] = LAYOUTS) -> Renamed:
    """Find the layout of a container and bring its names to ours.

    Args:
        container: What a file holds.
        layouts: Those that it may have, tried in order.

    Raises:
        InputError: No layout fits, or two weights end up with one name.
    """
    names = [*container.tensors, *container.strays]
    own, outside = _unwrapped(names)
    layout = next(
        (each for each in layouts if any(re.search(each.mark, name) for name in own.values())), None
    )
    if layout is None:
        raise InputError(
            f"no vision transformer in any known layout (weights: {', '.join(sorted(names)[:6])}, …)",
            path=container.path,
            hint=f"known: {', '.join(each.name for each in layouts)}",
        )
    source = _source(container, own.values(), names) if layout in LAYOUTS else layout.name
    result = Renamed(layout, source, dropped=outside, lacks_norm=source == "CrossMAE")
    for name, inner in own.items():
        if any(re.search(pattern, inner) for pattern in layout.drop):
            result.dropped.append(name)
        elif name in container.strays:
            result.strays.append(name)
        else:
            new = _renamed(inner, layout)
            if new in result.tensors:
                raise InputError(f"two weights of the file come to be called {new!r}", path=container.path)
            result.tensors[new] = container.tensors[name]
    _fuse_attention(result.tensors)
    return result


def _unwrapped(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Name in the file → name without wrappers, and names of other networks in the same file."""
    own = {name: name for name in names}
    outside: list[str] = []
    if any(
        name.startswith("module.momentum_encoder.") for name in own
    ):  # MoCo v3, which Layer-grafting builds on
        outside = [name for name in own if re.match(r"module\.(base_encoder|predictor)\.", name)]
        own = {name: name.removeprefix("module.momentum_encoder.") for name in own if name not in outside}
    if own and all(name.startswith("module.") for name in own.values()):
        own = {name: inner.removeprefix("module.") for name, inner in own.items()}
    for wrapper, mark in (
        ("backbone.", "patch_embed."),
        ("model.", "modality_encoders."),
        ("vit.", "embeddings."),
        ("ijepa.", "embeddings."),
        ("dinov2.", "embeddings."),
    ):
        if any(inner.startswith(wrapper + mark) for inner in own.values()):
            own = {name: inner.removeprefix(wrapper) for name, inner in own.items()}
    return own, outside


def _renamed(name: str, layout: Layout) -> str:
    for pattern, replacement in layout.rename:
        name = re.sub(pattern, replacement, name)
    return name


def _source(container: Container, inner: Iterable[str], names: Iterable[str]) -> str:
    """Which code most likely wrote a file in the common layout."""
    found = set(inner)

    def some(pattern: str, among: Iterable[str] = found) -> bool:
        return any(re.search(pattern, name) for name in among)

    for source, here in (
        ("data2vec 2.0", some(rf"^{_IMAGE}")),
        ("MIM-Refiner", some(r"^(cls_tokens\.tokens|pos_embed\.embed)$")),
        ("Hugging Face", some(r"^embeddings\.patch_embeddings\.")),
        ("CrossMAE", some(r"^(wfm|dec_norms)\.")),
        ("Mugs", some(r"^(relation_blocks|group_head|instance_head)\.")),
        ("Layer-grafting", some(r"^module\.momentum_encoder\.", names)),
        ("I-JEPA", container.wrapper == "target_encoder"),
        ("iBOT or DINO", container.wrapper == "teacher"),
        ("iBOT or DINO", some(r"^blocks\.0\.ls1\.") and some("^mask_token$")),  # DINOv2
        ("MAE", some(r"^decoder")),
        (LIKE_MAE, container.wrapper == "model" or some(r"^mask_token$")),
    ):
        if here:
            return source
    return "timm"


def _fuse_attention(tensors: dict[str, Tensor]) -> None:
    """Queries, keys and values that stand apart become one matrix; where one is missing, all stay as they are."""
    for name in [name for name in tensors if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])
