"""How long the command line takes to start: the median and range of fresh processes, taken in turns.

Usage: python benchmarks/start.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {"--help": 0.3, "list adapters": 0.6}
"""Commands, and the seconds that each should stay below."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    bare = "-c pass"
    seconds: dict[str, list[float]] = {name: [] for name in (bare, *COMMANDS)}
    for turn in range(rounds + 1):
        for name in seconds:
            arguments = ["-c", "pass"] if name == bare else ["-m", "sparsebench", *name.split()]
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if turn:  # the first turn warms the file cache
                seconds[name].append(time.perf_counter() - start)
    interpreter = statistics.median(seconds[bare])
    print(f"the interpreter alone: {interpreter:.3f} s")
    for name, limit in COMMANDS.items():
        times = seconds[name]
        middle = statistics.median(times)
        met = "met" if middle <= limit else "not met"
        print(
            f"sparsebench {name}: {middle:.3f} s ({min(times):.3f} to {max(times):.3f}, {rounds} rounds), "
            f"{middle / interpreter:.1f} times the interpreter; limit {limit} s: {met}"
        )


if __name__ == "__main__":
    main()
