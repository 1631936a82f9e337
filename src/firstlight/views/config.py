"""What the views are made of; light to import, since every run's config holds it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from firstlight.core.identity import ADDED_LATER

Scaling = Literal["column", "root", "centre", "none"]


class ScaleConfig(BaseModel):
    """How the columns and rows of a view are brought to a common scale; all statistics are of warm items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scaling: Scaling = "column"
    """``column``: subtract each column's mean and divide by its standard deviation (a constant column becomes
    zero); ``root``: divide by the square root of the standard deviation instead, half the way; ``centre``: subtract
    the mean only, so that strong columns stay strong; ``none``: leave as is."""

    clip: float | None = Field(10.0, gt=0)
    """With ``column`` scaling, largest absolute value, in standard deviations: a column that hardly varies among
    warm items must not own the row of a new one. None: no limit."""

    unit_rows: bool = True
    """Divide every row by its length, so that views can be joined as equals."""


class TextConfig(ScaleConfig):
    """Texts as TF-IDF, reduced by a truncated SVD."""

    scaling: Scaling = "root"
    """As in :class:`ScaleConfig`. The columns of an SVD are uncorrelated: at equal strength, and with about as many
    columns as texts, all texts would be equally far from each other; untouched, the first few columns decide
    everything. Half the way was near the better of the two on films and on generated titles, at all sizes."""

    columns: tuple[str, ...] | None = None
    """Columns to read; None: every column of strings, of categories or of lists of strings, but for ``cover``,
    ``clip``, ``role`` and ``arrived``. A named column may also hold numbers."""

    weights: dict[str, float] = {}
    """Column → how often a word of it counts; 1 where nothing is said."""

    dim: int = Field(256, ge=1)
    """Width of the view at most; fewer warm texts or fewer words give less."""

    ngrams: int = Field(1, ge=1, le=3)
    """Longest run of neighbouring words that counts as a word of its own."""

    min_count: int = Field(2, ge=1)
    """Warm texts that a word must be in. Catalogues of fewer than 100 warm texts keep every word."""

    max_features: int = Field(20_000, ge=1)
    """Words kept, those in the most warm texts first."""

    sublinear: bool = True
    """Count a word that is there c times as log(1 + c), so that a long plot does not drown a title."""

    max_characters: int = Field(20_000, ge=1)
    """Characters read of each text; what follows is ignored."""

    @field_validator("weights")
    @classmethod
    def _usable(cls, weights: dict[str, float]) -> dict[str, float]:
        if not all(0 <= weight < float("inf") for weight in weights.values()):
            raise ValueError("weights must be finite and not negative")
        return weights


class SentenceConfig(ScaleConfig):
    """Texts through a sentence encoder (extra ``text``), beside the view of their words."""

    path: str | None = None
    """Folder of an encoder on this machine, as ``SentenceTransformer.save_pretrained`` writes it. Nothing is fetched
    by name. A run keeps this path and a hash of the folder's content, and takes no other encoder for new items.
    None: no such view."""

    columns: tuple[str, ...] | None = None
    """Columns to read, joined to one text in the table's order; as in :class:`TextConfig`."""


class CoverConfig(ScaleConfig):
    """Covers as statistics of colour and edges: what can be seen without a trained encoder."""

    size: int = Field(64, ge=8, le=512)
    """Side in pixels that covers are resized to (whatever their aspect)."""

    grid: int = Field(4, ge=1, le=8)
    """Cells a side, for means, spreads and orientations."""

    colour_bins: int = Field(4, ge=1, le=8)
    """Bins an axis of the joint colour histogram."""

    orientations: int = Field(8, ge=2, le=36)
    """Bins of edge direction over half a turn."""

    max_pixels: int = Field(50_000_000, ge=1)
    """Covers with more pixels are refused unread: a few kilobytes can unfold to gigabytes."""

    max_bytes: int = Field(64 * 2**20, ge=1)
    """Covers with larger files are refused unread."""


class EncoderConfig(ScaleConfig):
    """Covers through an encoder of ``firstlight pretrain`` or ``refine``, or through a foreign checkpoint."""

    path: str | None = None
    """Folder of an encoder, or a checkpoint file, on this machine; None: no such view. A run keeps the weights, so
    that new items go through the same encoder."""

    tokens: Literal["class", "mean"] | None = None
    """What stands for a picture: the class token or the mean of the patches. None: as the encoder says."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels that pictures are brought to, such as 240, 160 for posters; positions are
    interpolated. None: the encoder's own."""

    precision: Annotated[Literal["float32", "bfloat16"], ADDED_LATER] = "float32"
    """Of the encoder's products; new items are met with the same. ``bfloat16`` is two to four times as fast on
    processors with instructions for it, here and where the bundle is served."""


class ClipConfig(EncoderConfig):
    """Clips through an encoder (extra ``video``): the mean over frames."""

    seconds: float = Field(1.0, gt=0)
    """Distance between the frames that are read."""

    most_frames: int = Field(32, ge=1)
    """Frames read of a clip, from its start."""


class FeatureConfig(ScaleConfig):
    """Ready-made features."""

    reduce: int | None = Field(None, ge=1)
    """Width to reduce to by principal components of the scaled columns; None: keep the width."""


class ViewsConfig(BaseModel):
    """Which views an item has, and how each is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use: tuple[str, ...] | None = None
    """Views by name, in the order models get them; None: every view that the catalogue has: each ready-made feature
    by its name, ``text`` if there are texts, ``sentence`` if an encoder of them is given besides, ``cover`` if there
    are covers, ``encoder`` and ``clip`` if encoders of covers and clips are given. Where a ready-made feature is called
    ``text``, ``sentence``, ``cover``, ``encoder`` or ``clip``, the view made here is called ``text-words``,
    ``sentence-encoder``, ``cover-pixels``, ``encoder-covers`` or ``clip-frames``."""

    text: TextConfig = TextConfig()
    """The view of the words in texts."""

    sentence: SentenceConfig = SentenceConfig()
    """The view of texts as a sentence encoder reads them."""

    cover: CoverConfig = CoverConfig()
    """The view of the covers."""

    encoder: EncoderConfig = EncoderConfig()
    """The view of the covers as a vision transformer sees them. A text in its place is the path."""

    clip: ClipConfig = ClipConfig()
    """The view of the clips, likewise."""

    features: FeatureConfig = FeatureConfig()
    """All ready-made features."""

    @field_validator("encoder", "clip", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("use")
    @classmethod
    def _distinct(cls, use: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if use is not None and (not use or len(set(use)) != len(use)):
            raise ValueError("name at least one view, and each only once")
        return use
