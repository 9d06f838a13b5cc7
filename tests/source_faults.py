"""A source of data that stops midway, at any byte: done to runs like the faults in `faults`."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import faults
import yaml
from faults import Aftermath, Arena, Driver, Moment

from sparsebench.data import downloads

TRIES = 1 + len(downloads._PAUSES)
"""Times that a download is tried."""


class Stopping(http.server.BaseHTTPRequestHandler):
    """Serves `content`; the next answers end after as many bytes as `stops` says."""

    content: ClassVar[bytes] = b""
    stops: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        end = self.stops.pop(0) if self.stops else len(self.content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[:end])

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def _empty_cache() -> Any:
    before = os.environ.get("SPARSEBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEBENCH_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("SPARSEBENCH_CACHE")
            if before is not None:
                os.environ["SPARSEBENCH_CACHE"] = before


@cache
def _served(suite: Path, folder: Path) -> Arena:
    """The suite with one task's rows behind an address, and its undisturbed results."""
    place = folder / "served"
    place.mkdir()
    data = yaml.safe_load(suite.read_text())
    rows = suite.parent / "facts.jsonl"
    Stopping.content = rows.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stopping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    text = (suite.parent / "tiny-choice.yaml").read_text()
    sha256 = hashlib.sha256(Stopping.content).hexdigest()
    url = f"url: http://127.0.0.1:{server.server_address[1]}/facts.jsonl\n  sha256: {sha256}"
    (place / "tiny-choice.yaml").write_text(text.replace(f"path: {rows}", url))
    data["grids"][0]["tasks"][0] = str(place / "tiny-choice.yaml")
    (place / "suite.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    with _empty_cache():
        return Arena.build(place / "suite.yaml", place / "runs")


def source_stops(arena: Arena, moment: Moment) -> Aftermath:
    """A server that hangs up: a few times, which is borne, or as often as it is asked, which ends the run."""
    served = _served(arena.suite, arena.folder)
    random_ = random.Random(f"{moment}")
    times = random_.randrange(1, TRIES + 1)
    Stopping.stops[:] = [random_.randrange(len(Stopping.content)) for _ in range(times)]
    found = Aftermath("a source that stops midway", moment, struck=True)
    with _empty_cache():
        out = served.out()
        driver = Driver(served.suite, out, prepare=lambda: setattr(downloads, "_PAUSES", (0.0,) * (TRIES - 1)))
        code = driver.wait()
        if (code, out.exists()) != ((2, False) if times == TRIES else (0, True)):
            found.notes.append(f"left with {code} after {times} stops: {driver.said()[-400:]}")
        Stopping.stops.clear()
        before, start = faults.ages(out) if out.exists() else {}, time.monotonic()
        found.stored = len(before)
        driver = Driver(served.suite, out)
        if code := driver.wait():
            found.notes.append(f"going on left with {code}: {driver.said()[-400:]}")
        written = driver.cells_written()
        found.resumed_after = written[0][0] - start if written else 0.0
        faults.compare(served, found, out, before, Counter(cell for _, cell in written))
    return found
