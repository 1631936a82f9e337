"""The settings of MHCR: what its authors released, what their paper draws, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from firstlight.graphs.hypergraph import HyperNorm
from firstlight.models.item_graphs import ItemGraphConfig

#: What the two reproducing settings change; ``best`` is the defaults of the fields.
_PAPER: dict[str, Any] = {
    "normalise": "none",
    "init": "xavier",
    "init_norm": None,
    "user_dropout": 0.0,
    "layers": 7,
    "hyper_layers": 4,
    "hyper_weight": 0.05,
    "hyper_dropout": 0.3,
    "membership_noise": True,
    "hyper_norm": "none",
    "user_memberships": "sum",
    "gates": "shared",
    "self_neighbour": True,
    "fusion": "side",
    "content_weight": 0.0,
    "user_content": 0.0,
    "content_dropout": 0.0,
    "cold_share": 0.0,
    "cold_loss": 0.0,
    "cold_bias": False,
    "batch_l2": 1e-4,
    "table_norm": 0.1,
    "side_contrast": 0.01,
    "hyper_contrast": "joint",
    "hyper_contrast_weight": 1e-5,
    "cross_contrast": "ranks",
    "cross_contrast_weight": 0.01,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "best": {},
    "paper": _PAPER,
    "released": {**_PAPER, "fusion": "last-layer"},
}


class MHCRConfig(ItemGraphConfig):
    """Config of :class:`firstlight.models.mhcr.MHCR`.

    Fields that are not given take the value of the ``setting``; the defaults below are those of ``best``.
    """

    name: Literal["mhcr"] = "mhcr"

    setting: Literal["best", "paper", "released"] = "best"
    """Where the defaults come from. ``released``: the authors' code, in which a misnamed variable puts the last
    LightGCN layer where the content side belongs. ``paper``: what the paper's figure draws. ``best``: ours. In the
    first two an item of the catalogue that nobody clicked is ranked by its untrained ID and the graphs, as the authors'
    code does; items that are added later have no ID, and are made of content in all three. Of the released code,
    trainable raw features and Gumbel noise during evaluation are in none of the three: the first makes an unseen item's
    features strangers to the model, the second makes metrics random. Nor is the factor .96^(epoch/50) on the released
    learning rate of 1e-3: ``training.schedule`` decides."""

    init: Literal["xavier", "spectral"] = "spectral"
    """Start of the ID vectors (released: Xavier-uniform). ``best`` starts where a truncated SVD of the click graph
    would end, which is ahead of anything that a few hundred steps learn from a random start."""

    init_norm: float | None = Field(0.3, gt=0)
    """Root-mean-square length of the ID vectors at the start; with it, content and hypergraph vectors of length one
    neither drown the IDs nor drown in them."""

    user_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of elements of the user vector that training sets to zero."""

    layers: int = Field(1, ge=0)
    """Layers of the user–item graph (paper: L; released: 7)."""

    item_layers: int = Field(1, ge=1)
    """Layers of the item–item graphs (L_i)."""

    self_neighbour: bool = False
    """Whether an item is its own first neighbour, as released. A cold item has no ID to pass to itself, so ``best``
    averages over other, warm items only, and warm and cold items are made by one rule."""

    hyperedges: int = Field(32, ge=1)
    """Hyperedges per view (K)."""

    hyper_layers: int = Field(1, ge=1)
    """Layers of the hypergraphs (L_h; released: 4, which without normalisation leaves one direction)."""

    hyper_norm: HyperNorm = "edges"
    """Division by the hyperedge's total membership, or ``none`` as released."""

    membership_temperature: float = Field(0.5, gt=0)
    """Temperature of the memberships (τ of the Gumbel softmax; not the loss's)."""

    membership_noise: bool = False
    """Gumbel noise on memberships in training."""

    user_memberships: Literal["sum", "mean"] = "mean"
    """A user's logits: sum of those of their items, as released (they saturate with activity), or mean."""

    hyper_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of memberships set to zero in training (released: 1 − keep_rate = .3)."""

    hyper_weight: float = Field(0.0, ge=0)
    """Weight of the normalised hypergraph vector (α; released: .05). 0 switches it off. On three splits of MovieLens
    (small) .1 moved the mean validation Recall@20 (harmonic, cold and warm) by +.001, which is less than splits differ,
    and the hypergraph vectors of two items had a mean cosine of .97: it costs time and tells little."""

    gates: Literal["views", "shared"] = "views"
    """One gate per view and another for the specific parts, without batch normalisation; or, as released, one
    gate with batch normalisation for all of them."""

    fusion: Literal["side", "last-layer", "none"] = "side"
    """What joins the click-graph vector: the content side (figure), the last LightGCN layer (released code), or
    nothing."""

    content_weight: float = Field(1.0, ge=0)
    """Weight of the vector that a two-layer network makes of an item's content; ours. It stands in for the ID part
    of cold items (the spec's ID generator), trained by ranking; 0 as in paper and code."""

    user_content: float = Field(0.0, ge=0)
    """Weight of the mean of those vectors over a user's items, added to the user's; ours."""

    content_hidden: int = Field(256, ge=1)
    """Width of that network's hidden layer."""

    content_dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout on its hidden layer."""

    cold_share: float = Field(0.0, ge=0, lt=1)
    """Share of the warm items that a training step treats as cold (ρ): their IDs are hidden, their vectors come
    from content alone: they send nothing into hyperedges, and get nothing of their own back over item graphs of several
    layers. The cold simulation of DropoutNet, inside the ranking loss. Of no effect with ``self_neighbour``."""

    content_joins: bool = True
    """Whether the content vector is added to warm items too, or stands for cold ones only. Of three splits of
    movielens-small and three of movielens-1m, validation (harmonic, cold and warm) preferred false, with two layers, in
    five, and by most on movielens-1m, the larger."""

    cold_loss: float = Field(1.0, ge=0)
    """Weight of a second softmax in which every item is what it would be if it were cold; ours. Where the cold share
    trains both kinds in one ranking, this trains cold vectors beside a warm ranking that it need not disturb."""

    cold_temperature: float = Field(0.2, gt=0)
    """Its temperature. Content tells items apart less sharply than clicks do: on three splits of MovieLens (small) the
    mean validation Recall@20 (harmonic, cold and warm) was .254 with .2 and input of unit variance for the network,
    .247 with .1 and unit rows."""

    cold_bias: bool = True
    """Whether content also adds a bias to a cold item's score, linear in it and learned by the cold softmax; ours. Some
    items are liked by many (a decade, a genre, a well-known name tell), which a cosine can hardly say. On three splits
    of MovieLens (small) the mean validation Recall@20 of cold items was .2361 with it, .2316 without, warm .2737 and
    .2736."""

    cold_bias_dropout: float = Field(0.5, ge=0, lt=1)
    """Share of its weights that a training step leaves out."""

    cold_moves_users: bool = True
    """Whether it also moves the users' vectors and what items hand to neighbours and hyperedges, or reads them as
    they are."""

    scoring: Literal["trained", "dot"] = "trained"
    """Rank by what training compared (cosine, if normalised), or by the raw inner product."""

    batch_l2: float = Field(0.0, ge=0)
    """Weight of ½(‖Z_u‖² + ‖Z_p‖² + ‖Z_n‖²)/batch (reg_weight). The batch as it comes: the released code divides the
    short last one of an epoch by the configured size, too."""

    table_norm: float = Field(0.0, ge=0)
    """Weight of (‖Z_U‖_F + ‖Z_I‖_F)/n_items (embloss_weight; negligible by construction, for parity)."""

    side_contrast: float = Field(0.0, ge=0)
    """Weight of the InfoNCE between content side and click-graph vector (cl_loss)."""

    hyper_contrast: Literal["pairs", "joint"] = "pairs"
    """Contrast among the views' hypergraph vectors: InfoNCE of every pair of views, or the released sum over a
    batch against one view's table."""

    hyper_contrast_weight: float = Field(0.0, ge=0)
    """Its weight (hc_loss_weight)."""

    joint_table: str | int = -1
    """The view whose table holds the negatives of ``joint``, by name or by place; −1: ``text`` as released if there
    is one, else the last."""

    cross_contrast: Literal["nodes", "ranks"] = "nodes"
    """Contrast between a view's hypergraph vector and its item–item vector: InfoNCE of the batch's nodes, or the
    released comparison of sorted coordinates over all nodes."""

    cross_contrast_weight: float = Field(0.0, ge=0)
    """Its weight (ghc_weight)."""

    contrast_temperature: float = Field(0.2, gt=0)
    """Temperature of the contrastive terms (the sorted comparison has its own, .1)."""

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, values: Any) -> Any:
        """Fill what is not given from the setting."""
        if isinstance(values, Mapping):
            return {**SETTINGS.get(str(values.get("setting", "best")), {}), **values}
        return values
