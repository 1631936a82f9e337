"""Floor 2: one recommender per file, behind one seam (:mod:`firstlight.models.base`)."""

from firstlight.core.registry import Registry

#: All recommenders. A model is added by one file and one line here.
MODELS = Registry(
    "model",
    {
        "popularity": "firstlight.models.popularity:Popularity",
        "item-knn": "firstlight.models.item_knn:ItemKNN",
        "graph-filter": "firstlight.models.graph_filter:GraphFilter",
        "mf": "firstlight.models.mf:MatrixFactorisation",
        "lightgcn": "firstlight.models.lightgcn:LightGCN",
        "layergcn": "firstlight.models.layergcn:LayerGCN",
        "vbpr": "firstlight.models.vbpr:VBPR",
        "bm3": "firstlight.models.bm3:BM3",
        "freedom": "firstlight.models.freedom:FREEDOM",
        "mgcn": "firstlight.models.mgcn:MGCN",
        "mhcr": "firstlight.models.mhcr:MHCR",
        "random": "firstlight.models.random_scores:RandomScores",
        "ials": "firstlight.models.ials:IALS",
        "content-knn": "firstlight.models.content_knn:ContentKNN",
        "tower": "firstlight.models.tower:Tower",
        "dropoutnet": "firstlight.models.dropoutnet:DropoutNet",
        "clcrec": "firstlight.models.clcrec:CLCRec",
    },
)
