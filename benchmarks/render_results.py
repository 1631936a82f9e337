"""Write RESULTS.md from the JSON files under results/; nothing in it is typed by hand.

python benchmarks/render_results.py
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from render_cold import cold
from tables import ROOT, load, machine, spread, table

from firstlight.core.files import write_text

METHODS = {
    "popularity": "popularity",
    "item-knn": "item k-NN (co-clicks)",
    "bpr": "BPR",
    "learned-tau": "C-τ (learned, global)",
    "learned-user-tau": "Cu-τ (learned, per user)",
    "fixed-tau": "softmax, fixed τ",
    "bsl": "BSL",
    "adap-tau0": "Adap-τ₀",
    "adap-tau": "Adap-τ",
    "best": "best of ours",
}
#: Published Recall@20/NDCG@20 on the same split, selected on test (Adap-τ paper, table 2; BSL's logs).
PUBLISHED = {
    ("gowalla", "mf"): {
        "fixed-tau": (0.1761, 0.1399), "learned-tau": (0.1723, 0.1362), "learned-user-tau": (0.1751, 0.1383),
        "adap-tau0": (0.1754, 0.1386), "adap-tau": (0.1838, 0.1506), "bsl": (0.1882, 0.1584), "bpr": (0.1627, 0.1378),
    },
    ("gowalla", "lightgcn"): {
        "fixed-tau": (0.1878, 0.1577), "learned-tau": (0.1731, 0.1431), "learned-user-tau": (0.1797, 0.1488),
        "adap-tau0": (0.1841, 0.1526), "adap-tau": (0.1901, 0.1590), "bsl": (0.1892, 0.1590), "bpr": (0.1830, 0.1554),
    },
    ("movielens", "mf"): {
        "fixed-tau": (0.2789, 0.2624), "learned-tau": (0.2472, 0.2260), "learned-user-tau": (0.2600, 0.2398),
        "adap-tau0": (0.2792, 0.2638), "adap-tau": (0.2815, 0.2673), "bsl": (0.2804, 0.2681),
    },
    ("movielens", "lightgcn"): {
        "fixed-tau": (0.2767, 0.2575), "learned-tau": (0.2529, 0.2282), "learned-user-tau": (0.2582, 0.2357),
        "adap-tau0": (0.2744, 0.2571), "adap-tau": (0.2787, 0.2615), "bsl": (0.2790, 0.2605),
    },
}  # fmt: skip

HEADER = [
    "loss", "τ", "ours, honest", "ours, on test", "published", "epochs found of allowed", "training, min", "seeds",
]  # fmt: skip

INTRO = """# Results

Rendered by `python benchmarks/render_results.py` from the JSON files under `results/`; each of them names its
command, commit, seed, machine and time. Do not edit.
"""

QUALITY = """## Quality on the published splits

Recall@20 / NDCG@20, all items ranked, training items masked. **Ours, honest**: the number of epochs is found on a
validation carve-out of the training pairs, the model is trained again on all of them, test is used once.
**Ours, on test**: the same refit at its own best epoch on the test set; leaky, and only there to stand beside the
published column, which was selected the same way. ± is the standard deviation over seeds; brackets are the 95 %
bootstrap interval over users of the first seed. *No search*: trained to the end of the schedule without a look at
validation or test, where the search of a sibling on the same schedule had ended there. *BPR* has 30 to 80 epochs here,
where its papers train for hundreds: its rows say what it reaches in the time of the others, not what it can reach.
"""


def quality() -> str:
    """One table per data set and model."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in load("quality"):
        groups[record["job"]].append(record)
    if not groups:
        return ""
    parts = [QUALITY]
    for data in ("gowalla", "movielens"):
        for model in ("mf", "lightgcn"):
            names = [f"{data}-popularity", f"{data}-item-knn"] if model == "mf" else []
            names += [
                f"{data}-{model}-{method}" for method in METHODS if f"{data}-{model}-{method}" in groups
            ]
            rows = [row(name, groups[name], PUBLISHED[data, model]) for name in names if name in groups]
            if rows:
                parts.append(table(f"### {data}, {model}", rows, HEADER))
    return "\n".join(parts)


def row(name: str, records: list[dict[str, Any]], published: dict[str, tuple[float, float]]) -> list[str]:
    """One method's line."""
    method = next(m for m in sorted(METHODS, key=len, reverse=True) if name.endswith(m))
    results = [record["result"] for record in records]
    recall = [result["metrics"]["recall@20"] for result in results]
    ndcg = [result["metrics"]["ndcg@20"] for result in results]
    low, high = results[0]["intervals"]["recall@20"]
    leaky = [r["found"]["selected_on_test"] for r in results if "selected_on_test" in r["found"]]
    test = (
        f"{spread([x['metrics']['recall@20'] for x in leaky])} / {spread([x['metrics']['ndcg@20'] for x in leaky])}"
        if leaky
        else "–"
    )
    printed = published.get(method)
    config, found = results[0]["config"], results[0]["found"]
    trained = found["epochs"] > 0
    fixed = trained and config["temperature"]["name"] == "fixed" and config["loss"]["name"] != "bpr"
    length = (
        f"{found['epochs']} of {config['training']['epochs']}" if leaky else f"{found['epochs']}, no search"
    )
    seconds = found.get("refit_seconds", found.get("train_seconds"))
    return [
        METHODS[method],
        f"{config['temperature']['tau']:g}" if fixed else "–",
        f"{spread(recall)} [{low:.4f}, {high:.4f}] / {spread(ndcg)}",
        test,
        "–" if printed is None else f"{printed[0]:.4f} / {printed[1]:.4f}",
        length if trained else "–",
        f"{seconds / 60:.1f}" if seconds is not None else "–",
        str(len(records)),
    ]


def experiments() -> str:
    """Tables that the experiment scripts wrote as they are: title, note, header, rows."""
    parts = []
    for folder, heading in (
        ("vision", "## Refined encoders"),
        ("records", "## Filters without training, and blends"),
        ("ablation", "## What earns its place in MHCR"),
        ("paper", "## The paper's own experiments, and what they rest on"),
        ("served", "## Served"),
        ("speed", "## Speed"),
    ):
        records = load(folder)
        if records:
            parts.append(heading + "\n")
        for record in records:
            cells = [[str(cell) for cell in row] for row in record["rows"]]
            parts.append(table(f"### {record['title']}", cells, record["header"]))
            parts.append(
                f"{record['note']}\n\n`{record['command']}`, commit {record['commit']}, {machine(record)}.\n"
            )
    return "\n".join(parts)


def main() -> None:
    """Render."""
    write_text(
        ROOT / "RESULTS.md",
        "\n".join(part for part in (INTRO, quality(), cold(), experiments()) if part).rstrip() + "\n",
    )


if __name__ == "__main__":
    main()
