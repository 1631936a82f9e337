"""How long ``firstlight --help`` takes, beside an empty Python and a bare import of typer."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from machine import publish

#: Seconds that ``firstlight --help`` may take.
LIMIT = 0.3

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "firstlight --help": [sys.executable, "-m", "firstlight", "--help"],
    "firstlight train --help": [sys.executable, "-m", "firstlight", "train", "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):  # interleaved, so that a busy moment hits all alike
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    rows = [[name, f"{statistics.median(times):.3f}", f"{min(times):.3f}"] for name, times in taken.items()]
    note = f"Medians of {rounds} rounds; the limit for firstlight --help is {LIMIT} s."
    publish("speed", "startup", "Starting the command line", ["command", "median s", "fastest s"], rows, note)
    median = statistics.median(taken["firstlight --help"])
    print(f"firstlight --help: {median:.3f} s, limit {LIMIT} s: {'kept' if median < LIMIT else 'BROKEN'}")
    return 0 if median < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
