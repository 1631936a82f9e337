"""Settings of the encoder protocols (specs/mim-refiner.md §4); the defaults are the paper's where it has any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Learning rates of the probe grid, for a batch of 256 (§4.2).
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KnnConfig(_Config):
    """Nearest-neighbour classification (§4.1)."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20), min_length=1)
    """Neighbours; the tables show the fewest. A k above the size of the bank is left out."""
    temperature: float = Field(0.07, gt=0)
    """T: a neighbour of cosine s votes with exp(s / T); infinity lets all count alike."""


class LinearConfig(_Config):
    """The grid of linear probes on cached features (§4.2)."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(LEARNING_RATES, min_length=1)
    """Learning rates for a batch of 256; scaled with the batch."""
    epochs: int = Field(50, ge=1)
    """Passes over the bank."""
    batch_size: int = Field(1024, ge=2)
    """Images a step."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises; then it falls along a cosine to 0 (the authors': to 1e-6)."""
    holdout: float = Field(0.1, gt=0, lt=1)
    """Share of the bank on which the probe is chosen (the authors choose it on the queries)."""


class LowShotConfig(_Config):
    """Logistic regression on a few labels (§4.3)."""

    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 5)
    """Images a class."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.1)
    """Shares of every class. With so many labels the paper fine-tunes: ``finetune.share`` does that."""
    splits: int = Field(10, ge=1)
    """Draws of the labelled images; the mean is reported (the paper: over three published lists)."""
    penalty: float = Field(2.5e-4, gt=0)
    """λ·n: the objective is mean log loss + (penalty / n) / 2 · ‖W‖²."""


class ClusterConfig(_Config):
    """k-means without labels, and how the classes lie in feature space (§4.6)."""

    restarts: int = Field(10, ge=1)
    """Starts of k-means; the one with the least inertia counts."""
    silhouette_images: int = Field(10_000, ge=2)
    """Most images for the silhouette, whose cost is quadratic."""


class FinetuneConfig(_Config):
    """Training the whole encoder with labels (§4.3, §4.4), without the paper's search for a learning rate."""

    share: float = Field(1.0, gt=0, le=1)
    """Share of every class in the bank that is trained on."""
    epochs: int = Field(50, ge=1)
    """Passes over the labelled images."""
    batch_size: int = Field(128, ge=2)
    """Images a step."""
    base_rate: float = Field(1e-3, gt=0)
    """Learning rate for a batch of 256; scaled with the batch."""
    end_rate: float = Field(1e-6, ge=0)
    """Rate that the cosine ends at."""
    warmup_epochs: float = Field(5, ge=0)
    """Epochs in which the rate rises; never more than a fifth of ``epochs``."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's; none on biases, norms, tokens and positions."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """d: block i of L learns at rate · d^(L − i), the patch embedding at d^(L + 1)."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target spread over all classes."""
    min_scale: float = Field(0.08, gt=0, le=1)
    """Smallest area of a random crop."""
    augment: Literal["auto", "plain", "strong"] = "auto"
    """``plain``: crops and mirror images alone. ``strong``: all of the following besides. ``auto``: strong from a tenth
    of the labels on, as the paper has it for 1 % (plain), 10 % and all of them (strong)."""
    operations: int = Field(2, ge=0)
    """Operations of RandAugment that an image goes through; strong augmentation only, like all below."""
    magnitude: float = Field(9.0, ge=0, le=10)
    """Their mean level, from 0 to 10."""
    magnitude_deviation: float = Field(0.5, ge=0)
    """Its standard deviation."""
    mixup: float = Field(0.8, ge=0)
    """α of mixup, by which half of the steps blend images; 0: never."""
    cutmix: float = Field(1.0, ge=0)
    """α of CutMix, by which the other half puts a box of one image into another; 0: never."""
    erasing: float = Field(0.25, ge=0, le=1)
    """Chance that a box of an image is erased."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Chance that the last block skips a branch. None, by width as in the paper: .1 for ViT-L, .2 for ViT-H, .3 for 2B,
    and .1 more with all labels (2B: not more); below ViT-L .1."""

    @property
    def strong(self) -> bool:
        """Whether augmentation is strong."""
        return self.share >= 0.1 if self.augment == "auto" else self.augment == "strong"

    def drop_path_of(self, dim: int) -> float:
        """The chance for an encoder of a width; 0 under plain augmentation."""
        if not self.strong:
            return 0.0
        if self.drop_path is not None:
            return self.drop_path
        base = 0.3 if dim >= 2560 else 0.2 if dim >= 1280 else 0.1
        return round(base + 0.1, 1) if self.share == 1 and 1024 <= dim < 2560 else base


class ProbeConfig(_Config):
    """All settings of ``probe``."""

    seed: int = 0
    """Of every draw: splits, starts, order."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where encoders run; ``auto`` takes a GPU if there is one."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Blocks whose output is measured, counted from 0; all if None. The last four and the output always are."""
    holdout: float = Field(0.2, gt=0, lt=1)
    """Share of the images that become queries where the data has no split of its own."""
    long_tailed: float | None = Field(None, gt=1)
    """Largest class of the bank over its smallest; the bank is thinned out along an exponential. None: as it is."""
    knn: KnnConfig = KnnConfig()
    """Nearest neighbours."""
    linear: LinearConfig = LinearConfig()
    """Linear probes."""
    low_shot: LowShotConfig = LowShotConfig()
    """Few labels."""
    clusters: ClusterConfig = ClusterConfig()
    """Clustering."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Fine-tuning."""
