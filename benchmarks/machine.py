"""What the benchmarks share: real data, medians of paired timings, peak memory, a plain table."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FIRSTLIGHT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def cpu_seconds() -> float:
    """CPU seconds of this process so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """Largest resident size of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """Resident size now, in megabytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def paired(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Time all candidates in turn, ``rounds`` times: drifts of the machine hit them alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            times[name].append(timed(work))
    return times


def median_ratio(top: Sequence[float], bottom: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print an aligned table."""
    cells = [[str(c) for c in header], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def provenance() -> dict[str, object]:
    """What has to stand beside a committed number: command, commit, machine."""
    from firstlight.training.run_folder import environment

    # A copy of the sources without history is told its commit.
    commit = os.environ.get("FIRSTLIGHT_COMMIT") or subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()  # fmt: skip
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "commit": commit, "machine": environment()}


def publish(
    folder: str,
    name: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    note: str,
    **more: object,
) -> None:
    """Print a table and write it to ``results/folder/name.json``, where ``render_results.py`` finds it.

    ``more`` goes into the file beside the table, for scripts that read it again.
    """
    from firstlight.core.files import write_json

    table(title, header, rows)
    print(f"  {note}")
    cells = [[str(cell) for cell in row] for row in rows]
    record = {"title": title, "header": list(header), "rows": cells, "note": note, **more, **provenance()}
    write_json(ROOT / "results" / folder / f"{name}.json", record)
