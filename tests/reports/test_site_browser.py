"""The site in a real browser: Chromium, driven by Playwright, looked at by axe-core.

Each is skipped, and says so, where it is not to be had. axe-core (MPL-2.0) is fetched from the npm registry for the tests
and is no part of the project. Where SPARSEBENCH_SCREENSHOTS names a folder, the screenshots stay there.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparsebench.reports import site
from sparsebench.reports.ledger import read_claims

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PROJECT = Path(__file__).parents[2]
PUBLISHED = PROJECT / "leaderboard" / "results" / "knowledge.tar.xz"
AXE_VERSION = "4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
WIDTHS = {"phone": 360, "tablet": 820, "desktop": 1440}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium here")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core; fetched once where pytest has a cache."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("axe-core") if cache is not None else tmp_path_factory.mktemp("axe-core")
    place = folder / f"axe-{AXE_VERSION}.min.js"
    if not place.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core is fetched with npm, which is not here")
        command = [npm, "pack", "--silent", f"axe-core@{AXE_VERSION}", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"axe-core cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(folder / f"axe-core-{AXE_VERSION}.tgz") as archive:
            content = archive.extractfile("package/axe.min.js")
            assert content is not None
            place.write_bytes(content.read())
    assert hashlib.sha256(place.read_bytes()).hexdigest() == AXE_SHA256
    return place.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def synthetic(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of made-up results of all families, hostile names among them."""
    return site.build_site([results], tmp_path_factory.mktemp("browser") / "site").parent


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the repository's own results."""
    if not PUBLISHED.is_file():
        pytest.skip("the published results are not here")
    claims = read_claims(PROJECT / "leaderboard" / "claims")
    return site.build_site([PUBLISHED], tmp_path_factory.mktemp("published") / "site", claims=claims).parent


@pytest.fixture(params=["synthetic", "published"])
def built(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def kinds(built: Path) -> list[str]:
    """One page of each kind, the longest where there are several."""
    found = ["index.html", "leaderboard/index.html", "downloads.html", "about.html", "findings.html", "claims.html"]
    found += ["methods/index.html", "tasks/index.html"]
    for folder in ("methods", "tasks", "cells"):
        pages = [path for path in (built / folder).glob("*.html") if path.name != "index.html"]
        found.append(f"{folder}/{max(pages, key=lambda path: (path.stat().st_size, path.name)).name}")
    return [name for name in found if (built / name).is_file()]


class Watched:
    """A page whose requests, messages and errors are kept."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._failed)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None
        )

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was opened before the icon had come
            self.complaints.append(f"failed: {request.url}")


@contextmanager
def page_of(browser: Any, **options: Any) -> Iterator[Watched]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    try:
        yield Watched(context.new_page())
    finally:
        context.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def heading(page: Any, name: str) -> Any:
    exactly = re.compile(rf"^\s*{re.escape(name)}\s*$")
    return page.locator("table.leaderboard thead th").filter(has_text=exactly).locator("button")


def column(page: Any, name: str) -> list[str]:
    """What a column of the leaderboard shows, or its numbers."""
    script = """(name) => {
        const table = document.querySelector("table.leaderboard");
        const at = [...table.tHead.rows[0].cells].findIndex((th) => th.textContent.trim() === name);
        return [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.n ?? row.cells[at].textContent.trim());
    }"""
    page.locator("table.leaderboard").wait_for()  # a page that a link leads to may not be there yet
    return page.evaluate(script, name)  # type: ignore[no-any-return]


def test_pages_say_nothing_on_the_console_and_ask_nobody(browser: Any, built: Path) -> None:
    with served(built) as address, page_of(browser) as watched:
        for name in kinds(built):
            watched.page.goto(f"{address}/{name}")
        assert watched.complaints == []
        assert {url for url in watched.requests if not url.startswith(address)} == set()
    with page_of(browser) as watched:
        for name in kinds(built):
            watched.page.goto((built / name).as_uri())
        assert watched.complaints == [] and all(url.startswith("file://") for url in watched.requests)


@pytest.mark.parametrize("name", ["Value", "Sparsity", "FLOPs", "n"])
def test_numbers_sort_up_down_and_back_with_the_unknown_last(browser: Any, synthetic: Path, name: str) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "leaderboard/index.html").as_uri())
        before = column(page, name)
        heading(page, name).click()
        rising = column(page, name)
        numbers = [float(text) for text in before if text]
        shown = [float(text) for text in rising if text]
        assert shown == sorted(numbers)[: len(shown)] and rising == [
            *[t for t in rising if t],
            *[t for t in rising if not t],
        ]
        assert page.locator("[aria-sort=ascending]").count() == 1
        heading(page, name).click()
        falling = [float(text) for text in column(page, name) if text]
        assert falling == sorted(numbers, reverse=True)[: len(falling)]
        heading(page, name).click()
        assert (
            column(page, name) == before and page.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 0
        )
        assert watched.complaints == []


def test_texts_sort_by_the_alphabet(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        watched.page.goto((synthetic / "leaderboard/index.html").as_uri())
        heading(watched.page, "Verdict").click()
        texts = [re.sub(r"^\W+", "", text) for text in column(watched.page, "Verdict") if text]
        assert texts == sorted(texts) and len(set(texts)) > 3


def test_filters_count_what_they_keep_and_are_in_the_address(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "leaderboard/index.html").as_uri())
        everything = page.locator("table.leaderboard tbody tr").count()
        page.locator("select[name=verdict]").select_option("regressed")
        kept = column(page, "Verdict")
        assert 0 < len(kept) < everything and all("regressed" in text for text in kept)
        page.locator("input[name=q]").fill("wanda")
        assert all("wanda" in text for text in column(page, "Method"))
        heading(page, "Sparsity").click()
        heading(page, "Sparsity").click()
        found, address = column(page, "Sparsity"), page.evaluate("location.href")
        assert found and str(len(found)) in page.locator("form.filters .count").inner_text()
        assert "verdict=regressed" in address and "q=wanda" in address and "descending" in address
    with page_of(browser) as watched:
        watched.page.goto(address)
        assert column(watched.page, "Sparsity") == found
        watched.page.get_by_role("button", name="Reset").click()
        watched.page.wait_for_url(lambda url: "#" not in url)
        assert watched.page.locator("table.leaderboard tbody tr").count() == everything
        watched.page.goto(f"{address.split('#')[0]}#verdict=nothing&sort=99.sideways&hide=77.x&task=<b>")
        assert watched.page.locator("table.leaderboard tbody tr").count() == everything
        assert watched.complaints == []


def test_columns_can_be_left_out_and_the_address_says_which(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "leaderboard/index.html").as_uri())
        page.get_by_text("Columns", exact=True).click()
        page.get_by_role("checkbox", name="Bytes").uncheck()
        assert not heading(page, "Bytes").is_visible() and heading(page, "FLOPs").is_visible()
        address = page.evaluate("location.href")
        assert "hide=" in address
        page.goto("about:blank")
        page.goto(address)
        assert not heading(page, "Bytes").is_visible()
        assert watched.complaints == []


def test_the_overviews_counts_lead_to_rows_with_that_verdict(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "index.html").as_uri())
        link = page.locator("a[href*='#verdict=regressed']").first
        link.click()
        page.wait_for_url("**/leaderboard/**")
        kept = column(page, "Verdict")
        assert kept and all("regressed" in text for text in kept)


def test_a_long_leaderboard_is_sorted_whole_from_a_server_and_by_parts_in_a_folder(
    browser: Any, results: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "ROWS_OF_A_PAGE", 40)
    site.build_site([results], tmp_path / "site")
    with page_of(browser) as watched:
        watched.page.goto((synthetic / "leaderboard/pruning.html").as_uri())
        heading(watched.page, "Value").click()
        whole = column(watched.page, "Value")
    with served(tmp_path / "site") as address, page_of(browser) as watched:
        page = watched.page
        page.goto(f"{address}/leaderboard/index-2.html")
        assert page.locator("table.leaderboard tbody tr").count() == 40
        heading(page, "Value").click()
        page.locator("html:not([data-loading])").wait_for(state="attached")
        assert column(page, "Value") == whole
        assert watched.complaints == [] and all(url.startswith(address) for url in watched.requests)
    with page_of(browser) as watched:
        watched.page.goto((tmp_path / "site/leaderboard/index.html").as_uri())
        heading(watched.page, "Value").click()
        assert watched.page.locator("table.leaderboard tbody tr").count() == 40
        assert "act on the part that is shown" in watched.page.locator(".parts").inner_text()
        assert watched.complaints == []


def test_without_scripts_every_row_is_there_and_nothing_that_needs_one(browser: Any, built: Path) -> None:
    with page_of(browser) as watched:
        watched.page.goto((built / "leaderboard/index.html").as_uri())
        rows = watched.page.locator("table.leaderboard tbody tr").count()
    with page_of(browser, java_script_enabled=False) as watched:
        page = watched.page
        page.goto((built / "leaderboard/index.html").as_uri())
        assert page.locator("table.leaderboard tbody tr").count() == rows > 0
        assert [b for b in page.get_by_role("button").all() if b.is_visible()] == []
        page.locator("table.leaderboard tbody tr td a").last.click()
        page.wait_for_url("**/cells/**")
        assert page.locator("h1").is_visible()


def test_everything_is_reached_by_keyboard(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "leaderboard/index.html").as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.wait_for_url("**/*#content")
        reached = []
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("(document.activeElement.closest('th') || document.activeElement).textContent.trim()")
            )
            if reached[-1] == "Value":
                break
        assert reached[-1] == "Value"
        page.keyboard.press("Enter")
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Value")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "where the keyboard is can be seen"


def test_the_theme_is_the_systems_until_it_is_chosen(browser: Any, synthetic: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with page_of(browser, color_scheme="dark") as watched:
        page = watched.page
        page.goto((synthetic / "index.html").as_uri())
        dark = page.evaluate(ground)
        page.get_by_role("button", name="Switch between light and dark").click()
        light = page.evaluate(ground)
        assert dark != light == "rgb(255, 255, 255)"
        page.goto((synthetic / "about.html").as_uri())
        assert page.evaluate(ground) == light


def test_a_printed_page_has_the_table_and_no_controls(browser: Any, synthetic: Path) -> None:
    with page_of(browser) as watched:
        page = watched.page
        page.goto((synthetic / "leaderboard/index.html").as_uri())
        page.emulate_media(media="print")
        for control in ("form.filters", ".top nav", "button.theme", ".tabs"):
            assert not page.locator(control).first.is_visible(), control
        assert page.locator("table.leaderboard tbody tr").first.is_visible()
        too_wide = (
            "document.querySelector('table.leaderboard').getBoundingClientRect().width > document.body.clientWidth + 1"
        )
        page.set_viewport_size({"width": 1040, "height": 1400})  # A4, landscape
        assert not page.evaluate(too_wide)
        assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_serious(browser: Any, built: Path, axe: str, scheme: str) -> None:
    found = {}
    # The checker itself is a script that the pages' own policy would not let in.
    with page_of(browser, color_scheme=scheme, bypass_csp=True) as watched:
        for name in kinds(built):
            watched.page.goto((built / name).as_uri())
            watched.page.evaluate(axe)
            violations = watched.page.evaluate("axe.run().then((found) => found.violations)")
            for violation in violations:
                if violation["impact"] in ("serious", "critical"):
                    found[name, violation["id"]] = [node["html"][:200] for node in violation["nodes"][:3]]
    assert found == {}


def test_a_table_that_goes_on_to_the_right_says_so(browser: Any, synthetic: Path) -> None:
    said = "getComputedStyle(document.querySelector('table.leaderboard caption'), '::after').content"
    for width, there in ((390, True), (4000, False)):
        with page_of(browser, viewport={"width": width, "height": 900}) as watched:
            watched.page.goto((synthetic / "leaderboard/index.html").as_uri())
            watched.page.wait_for_timeout(200)
            assert ("Scroll sideways" in watched.page.evaluate(said)) is there
            watched.page.evaluate("document.querySelector('.scroll').scrollLeft = 1e6")
            watched.page.wait_for_timeout(200)
            assert "Scroll sideways" not in watched.page.evaluate(said)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_fit_their_window(browser: Any, built: Path, width: str, scheme: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SPARSEBENCH_SCREENSHOTS") or tmp_path) / built.parent.name.rstrip("0123456789")
    wide = []
    with page_of(browser, color_scheme=scheme, viewport={"width": WIDTHS[width], "height": 900}) as watched:
        for name in kinds(built):
            watched.page.goto((built / name).as_uri())
            if watched.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(name)
            place = (
                folder
                / f"{name.split('/')[0].removesuffix('.html')}-{'list' if name.endswith('/index.html') else 'page'}"
            )
            image = watched.page.screenshot(path=f"{place}-{width}-{scheme}.png")
            assert len(image) > 5_000, "a page that is not blank"
    assert wide == []
