"""All four parts on one GPU, in at most 200 seconds with the default limit.

    python benchmarks/gpu/run_all.py [--seconds 200] [--out DIR] [--only prefill decode]

The parts compile side by side, then take the GPU one after the other. Each is a process of its own. One that loses its
CUDA context, or ends otherwise, is started again and goes on behind the row that ended it, so that an error costs its
row alone. `DIR/gpu.json`, written anew whenever a row is done, holds everything; `DIR/gpu.log` what was printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHARES = {"decode": 0.18, "gemv": 0.20, "prefill": 0.37, "two_four": 0.25}
"""Of the time after compiling, in the order in which parts usually are ready."""
COMPILING = 0.3
STARTS = 8
"""How often a part is started at most."""
RESTART = 75
"""Exit status of a part whose CUDA context is lost."""
STUCK = 75.0
"""Seconds after which a step of a part that does not come back is given up."""


@dataclass
class Running:
    """A part's process, and the lines that it and those before it printed."""

    name: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)
    starts: int = 0
    status: int | None = None

    def start(self) -> None:
        """Start it, or start it again behind what it has done."""
        self.process = subprocess.Popen(
            self.command + ["--resume"] * bool(self.starts),
            env=self.environment,
            cwd=HERE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.starts += 1
        self.since = time.time()
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.lines += (line.rstrip() for line in process.stdout)

    def result(self) -> dict[str, Any]:
        """What it has written."""
        path = self.folder / f"{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def stuck(self) -> bool:
        """Whether the step that it is at has taken too long."""
        path = self.folder / f"{self.name}.json"
        if not path.exists() or time.time() - max(path.stat().st_mtime, self.since) < STUCK:
            return False
        return "running" in self.result()

    def look(self) -> bool:
        """Whether it goes on; one that ended badly is started again."""
        if self.status is None and self.process.poll() is None and self.stuck():
            self.lines.append(f"{self.name}: {self.result()['running']}: not done after {STUCK:.0f} s, stopped")
            self.process.kill()
            self.process.wait()
        if self.status is None and (status := self.process.poll()) is not None:
            self.reader.join(5)
            if status and self.starts < STARTS and (status == RESTART or "running" in self.result()):
                self.lines.append(f"{self.name}: ended with status {status}, started again")
                self.start()
            else:
                self.status = status
                (self.folder / f"{self.name}.ready").touch()  # its end keeps nobody waiting
        return self.status is None

    def stop(self) -> None:
        """End it at the time limit."""
        self.process.kill()
        self.reader.join(5)
        self.lines.append(f"{self.name}: stopped at the time limit")
        self.status = -1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--only", nargs="*", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    end = begun + given.seconds - 3
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    whole = sum(SHARES[name] for name in given.only)
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for name in sorted(given.only, key=list(SHARES).index):
            limit = given.seconds * (1 - COMPILING) * SHARES[name] / whole
            command = [sys.executable, str(HERE / f"{name}.py"), "--seconds", f"{limit:.0f}", "--out", folder]
            command += ["--together", str(len(given.only))] + ["--quick"] * given.quick
            parts.append(Running(name, command, Path(folder), environment))
        for part in parts:
            part.start()
        while any([part.look() for part in parts]) and time.monotonic() < end:
            time.sleep(0.3)
            _collect(parts, given.out, begun)
        for part in parts:
            if part.status is None:
                part.stop()
        _collect(parts, given.out, begun)
    lines = [line for part in parts for line in part.lines if "Warning" not in line]
    for heading, wanted in (("Checks", True), ("Rows", False)):
        print(f"\n{heading}")
        print("\n".join(line for line in lines if line.startswith("check ") == wanted))
    print(f"\n{time.monotonic() - begun:.0f} s")
    return int(any(part.status for part in parts))


def _collect(parts: list[Running], out: Path, begun: float) -> None:
    """Write what there is; whoever stops this process finds all rows that were done."""
    results = {}
    for part in parts:
        if result := part.result():
            results[part.name] = result | {"starts": part.starts, "status": part.status}
    whole = {"seconds": round(time.monotonic() - begun, 1), "parts": results}
    (out / "gpu.json.part").write_text(json.dumps(whole, indent=1))
    (out / "gpu.json.part").replace(out / "gpu.json")
    (out / "gpu.log").write_text("".join(f"{line}\n" for part in parts for line in part.lines))


if __name__ == "__main__":
    sys.exit(main())
