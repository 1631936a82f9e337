"""Floor 2: one recommender per file, behind one seam (:mod:`firstlight.models.base`)."""

from firstlight.core.registry import Registry

#: All recommenders. A model is added by one file and one line here.
MODELS = Registry(
    "model",
    {
        "popularity": "firstlight.models.popularity:Popularity",
        "item-knn": "firstlight.models.item_knn:ItemKNN",
        "mf": "firstlight.models.mf:MatrixFactorisation",
        "lightgcn": "firstlight.models.lightgcn:LightGCN",
    },
)
