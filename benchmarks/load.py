"""Seconds and peak memory of reading a large click log with string ids.

    python benchmarks/load.py [--rows 20000000] [--ids names|uuid]

Writes the log into a temporary folder, reads every format in a process of its own and prints a table.
"Peak" is the largest resident memory of that process, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import publish

STEP = 1_000_000
SELF = str(Path(__file__).resolve())


def generate(folder: Path, rows: int, ids: str) -> None:
    """Write ``names.csv``, ``names.parquet`` and ``rows/train.txt``; a fortieth as many users as rows."""
    import hashlib
    import uuid

    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    n_users, n_items = max(1, rows // 40), max(1, rows // 100)

    def label(prefix: str, count: int) -> pl.Series:
        if ids == "names":
            return pl.Series([f"{prefix}-{number:08d}" for number in range(count)])
        digests = (hashlib.md5(f"{prefix}{number}".encode()).digest() for number in range(count))
        return pl.Series([str(uuid.UUID(bytes=digest)) for digest in digests])

    users, items = label("user", n_users), label("item", n_items)
    with (folder / "log.csv").open("wb") as sink:
        for start in range(0, rows, STEP):
            n = min(STEP, rows - start)
            frame = pl.DataFrame(
                {
                    "user_id": users.gather(rng.integers(0, n_users, n)),
                    "item_id": items.gather((n_items * rng.random(n) ** 3).astype(np.int64)),  # a long tail
                    "timestamp": rng.integers(1_500_000_000, 1_600_000_000, n),
                }
            )
            frame.write_csv(sink, include_header=start == 0)
    pl.scan_csv(folder / "log.csv").sink_parquet(folder / "log.parquet")
    (folder / "rows").mkdir()
    with (folder / "rows" / "train.txt").open("w") as text:
        for user in range(n_users):
            text.write(" ".join(map(str, [user, *rng.integers(0, n_items, 40)])) + "\n")


def measure(path: Path) -> None:
    """Read one dataset in this process and print what it took as JSON."""
    import resource
    import time

    from firstlight.data.formats import detect_format, read_dataset

    start = time.perf_counter()
    dataset = read_dataset(path)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    taken = {
        "format": detect_format(path),
        "pairs": dataset.train.n_pairs,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * unit,
    }
    print(json.dumps(taken))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--ids", choices=["names", "uuid"], default="names")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.generate:
        return generate(chosen.generate, chosen.rows, chosen.ids)
    if chosen.measure:
        return measure(chosen.measure)
    # this process imports nothing large: a child's peak on Linux starts at its parent's size
    with tempfile.TemporaryDirectory(prefix="firstlight-load-") as name:
        folder = Path(name)
        common = ["--rows", str(chosen.rows), "--ids", chosen.ids]
        subprocess.run([sys.executable, SELF, "--generate", name, *common], check=True)
        rows = []
        for path, file in (
            (folder / "log.csv",) * 2,
            (folder / "log.parquet",) * 2,
            (folder / "rows", folder / "rows/train.txt"),
        ):
            done = subprocess.run(
                [sys.executable, SELF, "--measure", str(path)], check=True, capture_output=True, text=True
            )
            taken = json.loads(done.stdout)
            rows.append(
                [
                    file.name,
                    f"{file.stat().st_size / 1e6:.0f}",
                    f"{taken['pairs']:,}",
                    f"{taken['users']:,}",
                    f"{taken['items']:,}",
                    f"{taken['seconds']:.1f}",
                    f"{taken['cpu_seconds']:.1f}",
                    f"{taken['peak_bytes'] / 1e9:.2f}",
                ]
            )
    publish(
        "speed",
        f"load_{chosen.ids}",
        f"Reading {chosen.rows:,} rows with string ids",
        ["file", "MB", "pairs", "users", "items", "seconds", "CPU s", "peak GB"],
        rows,
        "Each file in a process of its own, from the import of firstlight to the finished dataset; two cores.",
    )
    return None


if __name__ == "__main__":
    main()
