"""Do covers through an encoder help the recommender? Colour statistics, a random ViT, an MAE, and the MAE refined.

    python benchmarks/cover_views.py --encoders [--threads 2]     # pre-train on the posters, refine; long, resumable
    python benchmarks/cover_views.py [--data movielens-small] [--models content-knn,tower] [--seeds 0,1,2]
    python benchmarks/cover_views.py --table
    python benchmarks/render_results.py

The encoders see the 9,517 posters of movielens-small (64 × 96 px) and nothing else: no label, no click. Both data sets
use the same encoders. Then the item-cold protocol of ``cold_start.py`` with the same splits and the same budget, each
view once alone and once beside the text (title, genres, plot, tags), and the text alone.
"""

from __future__ import annotations

import argparse

from machine import DATA, ROOT
from refined_encoders import SIZES, firstlight, settings

POSTERS = DATA / "movielens-small" / "items.parquet"
ENCODERS = ROOT / "runs" / "encoders" / "posters"
COLUMNS = ("--image-column", "poster_jpeg", "--id-column", "movieId")


def train_encoders(threads: int) -> None:
    """Pre-train on the posters and refine; both go on where they were cut."""
    changes = SIZES["long"]
    common = [POSTERS, *COLUMNS, "--threads", threads, "--resume"]
    mae, refined = ENCODERS / "mae", ENCODERS / "refined"
    firstlight(
        "pretrain", *common, "--out", mae, "--recipe", "pretrain-small", *settings(changes["pretrain"])
    )
    firstlight(
        "refine", *common, "--out", refined, "--encoder", mae, "--recipe", "refine-small", *settings(changes["refine"])
    )  # fmt: skip


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.encoders:
        train_encoders(options.threads)


if __name__ == "__main__":
    main()
