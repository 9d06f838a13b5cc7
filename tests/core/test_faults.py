"""Runs that are killed, starved and stopped: nothing is lost, nothing is done twice, the results are the same.

`benchmarks/faults` does the same at many more moments.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import signal
import threading
import time
from pathlib import Path

import faults
import pytest
from faults import Arena, Moment
from tqdm.auto import tqdm

from sparsebench.data import downloads
from sparsebench.data.downloads import fetch_url
from sparsebench.errors import MissingError
from sparsebench.suite_run import run_suite

CELLS = 13
COSTLY = ("driver_of_workers_killed", "worker_killed", "worker_out_of_memory", "ray_head_killed", "clock_jumps")
"""Faults whose processes start from nothing: one moment each, the others have three."""


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, reference: str) -> Arena:
    folder = tmp_path_factory.mktemp("faults")
    return Arena.build(faults.write_suite(folder / "suite", reference), folder / "runs")


def moments():
    random_ = random.Random(8)
    for name in faults.FAULTS:
        for number in range(1 if name in COSTLY else 3):
            yield pytest.param(name, Moment.draw(random_, CELLS - 1), id=f"{name}-{number}")


@pytest.mark.parametrize(("fault", "moment"), list(moments()))
def test_no_cell_is_lost_or_doubled_or_changed(arena, fault, moment):
    assert len(arena.expected) == CELLS
    try:
        found = faults.FAULTS[fault](arena, moment)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"{fault} cannot be done here: {error}")
    assert found.good, found


def test_a_driver_killed_within_a_lock_of_progress_bars_holds_up_nobody(arena):
    driver = faults.Driver(arena.suite, arena.out(), prepare=lambda: [tqdm.get_lock().acquire(), time.sleep(60)])
    while not driver.log.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    driver.signal(signal.SIGKILL)
    driver.wait()

    def take() -> None:
        with tqdm.get_lock():
            pass

    free = threading.Thread(target=take, daemon=True)
    free.start()
    free.join(10)
    assert not free.is_alive()


class _Stopping(http.server.BaseHTTPRequestHandler):
    """Serves `content`, of which the first `stops` answers end after some bytes."""

    content = b""
    stops: list[int] = []  # noqa: RUF012
    answers = 0

    def do_GET(self) -> None:
        type(self).answers += 1
        end = self.stops.pop(0) if self.stops else len(self.content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[:end])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A server, and an empty cache to download into."""
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_PAUSES", (0.0,))
    handler = type("Handler", (_Stopping,), {"stops": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}/rows.jsonl"
    server.shutdown()
    server.server_close()


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name == "rows.jsonl"]


@pytest.mark.parametrize("end", [0, 1, 4000])
def test_a_download_that_stops_midway_is_tried_again_and_never_taken_for_whole(source, tmp_path, end):
    handler, url = source
    handler.content = random.Random(0).randbytes(5000)
    sha256 = hashlib.sha256(handler.content).hexdigest()
    handler.stops = [end, end]
    with pytest.raises(MissingError, match=f"ended after {end} of 5000 bytes"):
        fetch_url(url, sha256)
    assert partial_files(tmp_path) == []
    handler.stops = [end]
    assert fetch_url(url, sha256).read_bytes() == handler.content
    answers = handler.answers
    fetch_url(url, sha256)
    assert handler.answers == answers


def test_a_download_that_is_too_large_is_given_up(source, tmp_path, monkeypatch):
    handler, url = source
    handler.content = b"0" * 5000
    monkeypatch.setattr(downloads, "SIZE_LIMIT", 4999)
    for announced in (True, False):
        if not announced:
            monkeypatch.setattr(handler, "send_header", lambda *words: None)
        with pytest.raises(MissingError, match="larger than 4999 bytes"):
            fetch_url(url, hashlib.sha256(handler.content).hexdigest())
    assert partial_files(tmp_path) == []


def test_a_run_whose_data_stop_midway_says_so_and_goes_on_later(source, small, tmp_path):
    handler, url = source
    handler.content = (small.folder / "facts.jsonl").read_bytes()
    task = json.loads(json.dumps(small.data))["grids"][0]
    text = Path(small.task("tiny-choice")).read_text()
    text = text.replace(f"path: {small.folder / 'facts.jsonl'}", f"url: {url}\n  sha256: {sha256_of(handler.content)}")
    Path(small.task("tiny-choice")).write_text(text)
    path = small.write(grids=[{**task, "tasks": [small.task("tiny-choice")], "methods": ["dense"]}])
    handler.stops = [100, 100]
    with pytest.raises(MissingError, match="ended after 100 of"):
        run_suite(str(path), tmp_path / "results")
    assert not (tmp_path / "results").exists()
    outcome = run_suite(str(path), tmp_path / "results")
    assert (outcome.done, outcome.failed) == (1, 0)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
