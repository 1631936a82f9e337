"""A vision transformer wired by hand, token by token, in float64: what the real one must equal."""

from __future__ import annotations

import math

import torch


def norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def attention(x, p, heads):
    """``(n, dim)`` of one image; heads one after the other."""
    dim = x.shape[1]
    d = dim // heads
    qkv = x @ p["attn.qkv.weight"].T + p.get("attn.qkv.bias", 0)
    out = torch.empty_like(x)
    for h in range(heads):
        q, k, v = (qkv[:, part * dim + h * d : part * dim + (h + 1) * d] for part in range(3))
        scores = q @ k.T / math.sqrt(d)
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        out[:, h * d : (h + 1) * d] = (weights / weights.sum(dim=1, keepdim=True)) @ v
    return out @ p["attn.proj.weight"].T + p["attn.proj.bias"]


def mlp(x, p):
    hidden = x @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]


def block(x, p, heads, post, eps):
    def normed(x, name):
        return norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)

    one, two = p.get("ls1.gamma", 1), p.get("ls2.gamma", 1)
    if post:
        x = normed(x + one * attention(x, p, heads), "norm1")
        return normed(x + two * mlp(x, p), "norm2")
    x = x + one * attention(normed(x, "norm1"), p, heads)
    return x + two * mlp(normed(x, "norm2"), p)


def plain_vit(state, image, heads, *, post=False, eps=1e-6):
    """All raw block outputs and the final one for one image.

    Args:
        state: Tensors named as in MAE and timm. ``pos_embed`` ``(1, n, dim)``, or ``(1, 1 + n, dim)`` with a row of
            the class token.
        image: ``(3, H, W)``.
        heads: Attention heads.
        post: The form of data2vec 2.0.
        eps: Of every layer norm.

    Returns:
        ``depth + 1`` tensors ``(prefix + n, dim)`` in float64.
    """
    state = {name: tensor.double() for name, tensor in state.items()}
    image = image.double()
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    size = weight.shape[-1]
    tokens = [
        (weight * image[:, y : y + size, x : x + size]).sum(dim=(1, 2, 3)) + bias
        for y in range(0, image.shape[1], size)
        for x in range(0, image.shape[2], size)
    ]
    positions = state["pos_embed"][0]
    n = len(tokens)
    x = torch.stack(tokens) + positions[-n:]
    if "reg_token" in state:
        x = torch.cat([state["reg_token"][0], x])
    if "cls_token" in state:
        own = positions[:1] if len(positions) == n + 1 else 0
        x = torch.cat([state["cls_token"][0] + own, x])
    if post:
        x = norm(x, state["embed_norm.weight"], state["embed_norm.bias"], eps)
    outputs = []
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for index in range(depth):
        prefix = f"blocks.{index}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        x = block(x, own, heads, post, eps)
        outputs.append(x)
    last = norm(x, state["norm.weight"], state["norm.bias"], eps) if "norm.weight" in state else x
    return [*outputs, last]


def random_state(
    *,
    dim=16,
    depth=2,
    size=4,
    rows=10,
    class_token=True,
    post=False,
    registers=0,
    scale=False,
    ratio=4,
    seed=0,
):
    """Random tensors of such a transformer, none of them zero, one, or equal to another.

    Args:
        dim: Width.
        depth: Blocks.
        size: Side of a patch.
        rows: Rows of ``pos_embed``.
        class_token: Whether there is one.
        post: The form of data2vec 2.0.
        registers: How many.
        scale: Whether there are factors on the branches.
        ratio: Width of the hidden layer by that of a token.
        seed: Of the numbers.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape, around=0.0, spread=0.3):
        return around + spread * torch.randn(*shape, generator=rng)

    state = {
        "patch_embed.proj.weight": draw(dim, 3, size, size),
        "patch_embed.proj.bias": draw(dim),
        "pos_embed": draw(1, rows, dim),
    }
    if class_token:
        state["cls_token"] = draw(1, 1, dim)
    if registers:
        state["reg_token"] = draw(1, registers, dim)
    shapes = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (ratio * dim, dim)}
    shapes["mlp.fc2"] = (dim, ratio * dim)
    for index in range(depth):
        for name, shape in shapes.items():
            state[f"blocks.{index}.{name}.weight"] = draw(*shape)
            state[f"blocks.{index}.{name}.bias"] = draw(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{index}.{name}.weight"] = draw(dim, around=1.0)
            state[f"blocks.{index}.{name}.bias"] = draw(dim)
        for name in ("ls1", "ls2") if scale else ():
            state[f"blocks.{index}.{name}.gamma"] = draw(dim, around=0.5)
    name = "embed_norm" if post else "norm"
    state[f"{name}.weight"], state[f"{name}.bias"] = draw(dim, around=1.0), draw(dim)
    return state
