"""Clustering by an encoder's features, and how the true classes lie among them (specs/mim-refiner.md §4.6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from firstlight.core.seeds import derive, numpy_stream
from firstlight.evaluation.encoder_config import ClusterConfig
from firstlight.evaluation.encoder_knn import standardised

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClusterResult:
    """Agreement of clusters with classes, and the shape of the classes.

    Attributes:
        accuracy: ACC: share of images in the class that their cluster is matched to.
        nmi: Normalised mutual information (arithmetic mean of the entropies).
        ami: The same, corrected for chance.
        ari: Adjusted Rand index.
        silhouette: Of the true classes, from −1 to 1; higher is better.
        davies_bouldin: Of the true classes; lower is better.
    """

    accuracy: float
    nmi: float
    ami: float
    ari: float
    silhouette: float
    davies_bouldin: float


def cluster(features: Tensor, truth: IntArray, config: ClusterConfig, seed: int) -> ClusterResult:
    """k-means with as many clusters as classes, compared with the classes.

    Features are standardised and scaled to length one, as for k-NN, so that distances are those of cosines. The
    labels say how many clusters there are and judge the outcome; the start that counts is chosen by inertia.

    Args:
        features: ``(n, dim)`` float32.
        truth: ``(n,)`` classes, at least two and fewer than n.
        config: Restarts and limits.
        seed: Of the starts.
    """
    from sklearn.cluster import KMeans

    rows = F.normalize(standardised(features, features)[0], dim=1).numpy()
    n_clusters = len(np.unique(truth))
    # 32 bits: the seeds of numpy's older generator, which scikit-learn uses.
    state = derive(seed, "clusters") % 2**32
    found = KMeans(n_clusters, n_init=config.restarts, random_state=state).fit_predict(rows)
    silhouette, davies_bouldin = separation(rows, truth, config.silhouette_images, seed)
    return ClusterResult(*agreement(truth, np.asarray(found, np.int64)), silhouette, davies_bouldin)


def agreement(truth: IntArray, found: IntArray) -> tuple[float, float, float, float]:
    """ACC, NMI, AMI and ARI of a clustering; the names of the clusters do not matter."""
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        adjusted_rand_score,
        normalized_mutual_info_score,
    )

    return (
        matched_accuracy(truth, found),
        float(normalized_mutual_info_score(truth, found)),
        float(adjusted_mutual_info_score(truth, found)),
        float(adjusted_rand_score(truth, found)),
    )


def matched_accuracy(truth: IntArray, found: IntArray) -> float:
    """The share of images whose cluster is matched to their class, under the best one-to-one matching."""
    from scipy.optimize import linear_sum_assignment

    classes, rows = np.unique(truth, return_inverse=True)
    clusters, columns = np.unique(found, return_inverse=True)
    counts = np.zeros((len(classes), len(clusters)), np.int64)
    np.add.at(counts, (rows, columns), 1)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth))


def separation(rows: npt.NDArray[np.float32], labels: IntArray, most: int, seed: int) -> tuple[float, float]:
    """Silhouette (of at most ``most`` images, drawn at random) and Davies–Bouldin score of labelled rows.

    Returns:
        Both; NaN where fewer than two classes, or as many as images, leave them undefined.
    """
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    drawn = np.arange(len(rows))
    if len(rows) > most:
        drawn = np.sort(numpy_stream(seed, "silhouette").choice(len(rows), most, replace=False))
    n = len(np.unique(labels[drawn]))
    silhouette = float(silhouette_score(rows[drawn], labels[drawn])) if 1 < n < len(drawn) else math.nan
    n = len(np.unique(labels))
    return silhouette, float(davies_bouldin_score(rows, labels)) if 1 < n < len(rows) else math.nan
