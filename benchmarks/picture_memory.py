"""Memory that opening a Parquet file of pictures takes, while it is read and when it is there.

    python benchmarks/picture_memory.py [--megabytes 300]

Pictures are random bytes, 100 kB each, since JPEG does not compress further. Each case runs in a process of its own;
what the process takes before it opens the file is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from machine import publish, resident_mb

PICTURE_BYTES = 100_000
NOTE = (
    "Peak and final resident memory beyond what the process takes before. A file is read a row group at a time, and "
    "its pictures are laid out in a temporary file, of which nothing stays in memory. A file of a single row group, as "
    "most writers make it by default, takes about one and a half times its size while it is opened. The last row reads "
    "all as bytes: what holding the pictures would take."
)


def write_files(folder: Path, megabytes: int) -> dict[str, Path]:
    """The same pictures in row groups of a hundred, and in one."""
    rng = np.random.default_rng(0)
    n = megabytes * 10**6 // PICTURE_BYTES
    pictures = [rng.bytes(PICTURE_BYTES) for _ in range(n)]
    frame = pl.DataFrame({"item": [f"i{row}" for row in range(n)], "image": pictures})
    files = {"row groups of 100": folder / "many.parquet", "one row group": folder / "one.parquet"}
    frame.write_parquet(files["row groups of 100"], row_group_size=100)
    frame.write_parquet(files["one row group"])
    return files


def own_peak_mb() -> float:
    """Largest resident size of this program (Linux); what getrusage tells counts the one that started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(file: str, how: str) -> None:
    """Print what one way of opening takes; runs in a process of its own."""
    from firstlight.vision.images import open_images

    before = resident_mb()
    if how == "open":
        images = open_images(file)
        count = len(images)
    else:
        held = pl.read_parquet(file, columns=["image"])["image"].to_list()
        count = len(held)
    now = resident_mb()
    print(json.dumps({"count": count, "peak": own_peak_mb() - before, "now": now - before}))


def main() -> None:
    """Parse and run."""
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=300)
    megabytes = parser.parse_args().megabytes
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), megabytes)
        cases = [(name, file, "open") for name, file in files.items()]
        cases.append(("one row group, all in memory", files["one row group"], "hold"))
        for name, file, how in cases:
            command = [sys.executable, __file__, "--measure", str(file), how]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            rows.append(
                [
                    name,
                    f"{file.stat().st_size / 2**20:.0f}",
                    f"{found['count']:,}",
                    f"{found['peak']:.0f}",
                    f"{found['now']:.0f}",
                ]
            )
    header = ["file", "size, MB", "pictures", "peak, MB", "afterwards, MB"]
    publish("speed", "picture_memory", "Opening a Parquet file of pictures", header, rows, NOTE)


if __name__ == "__main__":
    main()
