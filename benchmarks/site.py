"""How long the site of 10,000 cells takes to build, how large its first pages are, and how fast a browser sorts them.

    python benchmarks/site.py [--models N] [--folder DIR] [--out FILE]

Writes synthetic results (about 2,500 cells a model: every method that there is, at several levels, on several tasks),
builds their site in a process of its own, and opens it in Chromium, where each column of the leaderboard is sorted.
The browser is driven by Playwright; where either is missing, the table has no such line. The table goes to
benchmarks/results/site.json.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "reports"))

FIRST_PAGES = ("index.html", "leaderboard/index.html")
ASSETS = ("assets/style.css", "assets/site.js", "assets/icon.svg")
SAMPLES = 250
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4, help="language models; 4 make about 10,000 cells")
    parser.add_argument("--folder", type=Path, help="where to write; what is there already is used again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "site.json")
    parser.add_argument("--build", nargs=2, metavar=("RESULTS", "SITE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.build:
        print(json.dumps(build(*map(Path, chosen.build))))
        return
    from sparsebench import environment

    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        results, site = folder / f"synthetic-{chosen.models}", folder / "site"
        if not results.is_dir():
            unfinished = results.with_suffix(".unfinished")
            write(unfinished, chosen.models)
            unfinished.rename(results)
        command = [sys.executable, __file__, "--build", str(results), str(site)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        table: dict[str, Any] = {"hardware": environment.hardware(), "commit": environment.commit()[0]}
        table |= {"samples of a cell": SAMPLES, "resamples": RESAMPLES, "build": json.loads(done.stdout)}
        table["compressed, KiB"] = {page: round(compressed(site, page) / 1024, 1) for page in FIRST_PAGES}
        with served(site) as address:
            table["browser"] = sorting(f"{address}/leaderboard/index.html")
    print(json.dumps(table, indent=1))
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def write(results: Path, models: int) -> None:
    """The results of a few suites: every method, as many levels and tasks as a published grid has."""
    import synthetic_results as synthetic

    from sparsebench.adapters.registry import cards
    from sparsebench.store import Store

    found = cards()

    def methods(family: str, levels: tuple[dict[str, Any], ...], system: Any, **more: Any) -> Any:
        return tuple(
            synthetic.SyntheticMethod(
                card.id, family, levels, 0.15 + 0.13 * (k % 7), role=card.role, system=system, **more
            )
            for k, card in enumerate(card for card in found if card.family == family)
        )

    # Made-up results need not outlive a power cut, and ten thousand cells are forty thousand files.
    os.fsync = lambda descriptor: None
    store = Store.create(results)
    synthetic.write_suite(store, resamples=RESAMPLES)
    tasks = [
        replace(task, id=f"{task.id}-{name}")
        for task in (synthetic.QA, synthetic.PPL, synthetic.CHOICE, synthetic.GUESS)
        for name in ("a", "b")
    ]
    needles = [replace(synthetic.NEEDLE, id=f"needle-{length}k") for length in (2, 4, 8, 16, 32, 64)]
    for k in range(models):
        model = synthetic.LM.model_copy(update={"ref": f"hf:org/model-{k + 1}b", "fingerprint": f"{k:016x}"})
        writer = synthetic.Writer(store, samples=SAMPLES, system=model)
        writer.grid("pruning", methods("pruning", synthetic.LEVELS, model), tuple(tasks))
        writer.grid("activation", methods("activation", synthetic.LEVELS, model), tuple(tasks))
        attention = methods(
            "attention", synthetic.TOKENS, model, phase="decode", sparsities=synthetic.KEPT, decode_queries=96.0
        )
        writer.grid("attention", attention, tuple(needles))
    writer = synthetic.Writer(store, samples=SAMPLES)
    terms = ({"terms": 64}, {"terms": 32}, {"terms": 8})
    retrieval = methods("retrieval", terms, synthetic.ENCODER, phase="", sparsities=(0.4, 0.7, 0.92))
    writer.grid("retrieval", retrieval, tuple(replace(synthetic.SEARCH, id=f"search-{name}") for name in "abc"))


def build(results: Path, site: Path) -> dict[str, Any]:
    """Build the site; loading libraries is not counted."""
    import matplotlib.figure  # noqa: F401

    from sparsebench.environment import peak_memory
    from sparsebench.reports.site import build_site

    shutil.rmtree(site, ignore_errors=True)
    start, processor = time.perf_counter(), time.process_time()
    build_site([results], site)
    return {
        "cells": sum(1 for _ in (results / "cells").glob("*/record.json")),
        "seconds": round(time.perf_counter() - start, 1),
        "processor seconds": round(time.process_time() - processor, 1),
        "peak memory, MiB": (peak_memory() or 0) >> 20,
        "files": sum(1 for path in site.rglob("*") if path.is_file()),
        "MiB": round(sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 2**20, 1),
    }


def compressed(site: Path, page: str) -> int:
    """Bytes that a first visit of a page takes, each file compressed as servers do."""
    return sum(len(gzip.compress((site / name).read_bytes(), 6)) for name in (page, *ASSETS))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a local port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


LOADED = "html:not([data-loading])"
SORT = """async (column) => {
    const button = document.querySelector("table.leaderboard").tHead.rows[0].cells[column].querySelector("button");
    const start = performance.now();
    button.click();
    document.body.getBoundingClientRect();  // the layout is part of it
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""


def sorting(address: str) -> dict[str, Any] | str:
    """Milliseconds from the click on a heading to the frame that shows the sorted rows, over all columns."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "not measured: playwright is not installed"
    if browser is None:
        return "not measured: no Chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        page.goto(address, wait_until="load")
        opened = time.perf_counter() - start
        page.locator(LOADED).wait_for(state="attached")
        columns = page.evaluate("document.querySelector('table.leaderboard').tHead.rows[0].cells.length")
        page.evaluate(SORT, 0)
        page.locator(LOADED).wait_for(state="attached")
        times = [page.evaluate(SORT, column) for _ in range(3) for column in range(columns)]
        found = {
            "version": chromium.version,
            "rows": page.evaluate("document.querySelector('form.filters .count').textContent"),
            "opened, seconds": round(opened, 2),
            "sorting, median ms": round(statistics.median(times)),
            "sorting, largest ms": round(max(times)),
        }
        chromium.close()
    return found


if __name__ == "__main__":
    main()
