import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from synthetic_results import HOSTILE, PRUNING, QA, Writer

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError
from sparsebench.reports import site
from sparsebench.reports.collect import collect
from sparsebench.reports.notation import slug
from sparsebench.reports.views import Knob, MethodView, forest
from sparsebench.store import Store

VOID = {"meta", "link", "input", "br", "hr", "img", "path", "circle", "rect", "use"}
ADDRESSES = {"href", "src", "xlink:href", "action", "formaction", "data", "poster", "srcset"}

CARD = MethodCard(
    id="wanda",
    family="pruning",
    title="A <em>title</em>",
    summary="Scores & leaves out.",
    paper=Paper(
        title="A paper", authors="A. Author", year=2024, venue="ICLR", url="https://example.org/paper", key="a2024"
    ),
    unit="weight",
    deviations=("Departs <here>.",),
    nearest="magnitude",
    differs="no activations",
)
BAD_LINK = CARD.model_copy(
    update={"id": "sparsegpt", "paper": CARD.paper.model_copy(update={"url": "javascript:alert(1)"})}  # type: ignore[union-attr]
)


def cards(name: str) -> MethodView | None:
    known = {card.id: card for card in (CARD, BAD_LINK)}
    return MethodView(known[name], [Knob("compare_group", "row | layer", "row", "")]) if name in known else None


def build(results: Path, out: Path) -> Path:
    return site.build_site([results], out, cards=cards, descriptions={QA.id: "Questions <b>about</b> facts."})


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(results, tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, "Page"]:
    return {str(path.relative_to(built)): Page(path) for path in sorted(built.rglob("*.html"))}


class Page(HTMLParser):
    """A parsed page: its tags, addresses, ids and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == [], f"{path}: not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{self.path}: an attribute comes twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"{self.path}: </{tag}> out of place"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def addresses(self) -> list[tuple[str, str]]:
        return [
            (tag, value)
            for tag, attributes in self.tags
            for k, v in attributes.items()
            if k in ADDRESSES and (value := v or "")
        ]

    @property
    def ids(self) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get("id"))]


def test_every_kind_of_page_is_there(results: Path, pages: dict[str, Page]) -> None:
    cells = Store.open(results).ids()
    assert {f"cells/{cell}.html" for cell in cells} <= set(pages)
    expected = {
        "index.html",
        "about.html",
        "downloads.html",
        "leaderboard/index.html",
        "leaderboard/pruning.html",
        "leaderboard/activation.html",
        "leaderboard/attention.html",
        "leaderboard/retrieval.html",
        "methods/index.html",
        "methods/wanda.html",
        "methods/dense.html",
        "methods/random-weights.html",
        "tasks/index.html",
        "tasks/facts-qa.html",
    }
    assert expected <= set(pages)


def test_nothing_is_loaded_from_elsewhere(built: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for tag, address in page.addresses:
            if tag == "a":
                assert not address.startswith(("javascript:", "data:", "//")), name
            else:
                assert not re.match(r"[a-z]+:|//", address), (name, tag, address)
        assert page.all("script") == [{"src": "../" * name.count("/") + "assets/site.js"}], name
        (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
        assert policy and "default-src 'none'" in policy and "script-src 'self';" in policy
    style = (built / "assets/style.css").read_text()
    script = (built / "assets/site.js").read_text()
    assert "url(" not in style and "@import" not in style
    assert re.findall(r"fetch\(.*?\)", script) == ["fetch(part)"], "the other parts of a leaderboard, and nothing else"
    assert not re.search(r"XMLHttpRequest|import\(|eval|innerHTML|insertAdjacent|document\.write|https?:", script)


def test_every_link_leads_somewhere(built: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for tag, address in page.addresses:
            if address.startswith("https://"):
                assert tag == "a"
                continue
            file, _, fragment = address.partition("#")
            target = (page.path.parent / unquote(file)).resolve() if file else page.path
            assert target.is_file() and target.is_relative_to(built.resolve()), (name, address)
            if fragment and "=" not in fragment and target.suffix == ".html":
                assert fragment in pages[str(target.relative_to(built.resolve()))].ids, (name, address)


def test_nothing_in_a_record_becomes_markup(pages: dict[str, Page]) -> None:
    tags = Counter(tag for page in pages.values() for tag, _ in page.tags)
    assert tags["script"] == len(pages)
    for name, page in pages.items():
        for tag, attributes in page.tags:
            assert not any(key.startswith("on") for key in attributes), (name, tag)
        assert not {"iframe", "object", "embed", "base", "img", "em"} & {tag for tag, _ in page.tags}, name
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", page.source), name
    method = pages["methods/wanda.html"]
    assert "<script>alert('x')</script>" in method.text, "it is shown as the text that it is"
    assert "A <em>title</em>" in method.text and "Departs <here>." in method.text
    assert "Questions <b>about</b> facts." in pages["tasks/facts-qa.html"].text
    assert HOSTILE not in "".join(page.source for page in pages.values())


def test_links_of_cards_are_web_links_or_none(pages: dict[str, Page]) -> None:
    assert ("a", "https://example.org/paper") in pages["methods/wanda.html"].addresses
    bad = pages["methods/sparsegpt.html"]
    assert not any("javascript" in address for _, address in bad.addresses) and "A paper" in bad.text


def test_pages_are_for_everyone(pages: dict[str, Page]) -> None:
    titles = Counter()
    for name, page in pages.items():
        assert page.all("html") == [{"lang": "en"}], name
        assert any(m.get("name") == "viewport" for m in page.all("meta"))
        assert page.addresses and ("a", "#content") in page.addresses and "content" in page.ids, name
        assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")) == 1, name
        assert len(page.all("table")) == len(page.all("caption")), name
        assert all(th.get("scope") in ("col", "row") for th in page.all("th")), name
        assert len(set(page.ids)) == len(page.ids), name
        for tag, attributes in page.tags:
            if tag == "svg":
                assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label"), name
            if attributes.get("class") in ("scroll", "scroll wide", "plot"):
                assert attributes.get("tabindex") == "0" and attributes.get("aria-label"), name
        titles[re.search("<title>(.*?)</title>", page.source)[1]] += not name.startswith("cells/")  # type: ignore[index]
    assert max(titles.values()) == 1


def test_the_leaderboard_holds_every_headline_row(table: pd.DataFrame, pages: dict[str, Page]) -> None:
    rows = [attributes for attributes in pages["leaderboard/index.html"].all("tr") if "data-verdict" in attributes]
    headline = table[table["headline"] | (table["status"] == "failed")]
    assert Counter(row["data-verdict"] for row in rows) == Counter(headline["verdict"])
    pruning = [a for a in pages["leaderboard/pruning.html"].all("tr") if "data-verdict" in a]
    assert len(pruning) == (headline["family"] == "pruning").sum()
    activation = [a for a in pages["leaderboard/activation.html"].all("tr") if "data-verdict" in a]
    assert Counter(a["data-family"] for a in activation)["pruning"] == 2, "with the baselines that it shares"


def test_a_count_of_the_overview_leads_to_as_many_rows(pages: dict[str, Page]) -> None:
    links = re.findall(
        r'href="(leaderboard/\w+\.html)#verdict=([^"&]+)&amp;role=method">([\d,]+)</a>', pages["index.html"].source
    )
    assert len(links) > 3
    for page, verdict, count in links:
        rows = [a for a in pages[page].all("tr") if a.get("data-role") == "method"]
        assert sum(a["data-verdict"] == unquote(verdict) for a in rows) == int(count.replace(",", "")), (page, verdict)


def test_a_cells_page_has_its_numbers_and_the_command(
    results: Path, table: pd.DataFrame, pages: dict[str, Page]
) -> None:
    row = table[
        (table["method"] == "magnitude") & (table["task"] == QA.id) & (table["budget"] == "60%") & table["headline"]
    ]
    cell = row["cell"].iloc[0]
    page = pages[f"cells/{cell}.html"]
    for part in (
        cell,
        "regressed",
        f"{row['value'].iloc[0]:.3f}",
        f"sparsebench run synthetic.yaml --cell {cell}",
        "0.52\u00d7",
        "60.00%",
        "c" * 12,
    ):
        assert part in page.text, part
    assert "this cell has no speed" in page.text
    spec = json.loads(
        re.search(r'"task": \{.*', page.text)
        and page.text[page.text.index('{\n "calibration"') : page.text.index("Counters, facts")]
    )
    assert spec == Store.open(results).read(cell).spec.plain()


def test_samples_that_changed_are_shown_with_texts_only_where_permitted(
    results: Path, table: pd.DataFrame, pages: dict[str, Page]
) -> None:
    store = Store.open(results)
    rows = table[(table["method"] == "random-weights") & (table["budget"] == "60%") & table["headline"]]
    for row in rows.to_dict("records"):
        page = pages[f"cells/{row['cell']}.html"]
        ours, base = store.read(row["cell"]).samples(), store.read(row["baseline"]).samples()
        assert ours is not None and base is not None
        column = next(m.metric.column for m in store.read(row["cell"]).record.outcome.metrics if m.metric.headline)
        changed = (ours[column] != base[column]) & ours[column].notna()
        assert f"{changed.sum()} of {len(ours)} samples changed" in page.text
        shown = re.findall(rf"{row['task']}-\d{{5}}", page.text)
        assert len(shown) == min(changed.sum(), site.CHANGES_SHOWN)
        assert set(shown) <= set(ours.loc[changed, "sample"])
        assert ("Right answer" in page.text) == (row["task"] == QA.id)
        assert ("licence does not let" in page.text) == (row["task"] != QA.id)


def test_executed_cells_show_a_speed_and_others_none(table: pd.DataFrame, pages: dict[str, Page]) -> None:
    executed = set(table.loc[table["mode"] == "executed", "cell"])
    for cell in set(table["cell"]):
        assert ("tokens_per_second" in pages[f"cells/{cell}.html"].text) == (cell in executed)


def test_methods_have_card_citation_and_knobs(pages: dict[str, Page]) -> None:
    page = pages["methods/wanda.html"]
    assert (
        "@inproceedings{a2024," in page.text
        and "compare_group" in page.text
        and "magnitude: no activations" in page.text
    )
    assert any("data-copy" in a for a in page.all("pre"))
    assert "no card" in pages["methods/magnitude.html"].text


def test_tasks_have_definition_signal_and_figures(pages: dict[str, Page]) -> None:
    page = pages["tasks/facts-qa.html"]
    for part in ("def-facts-qa", "data-facts-qa", "CC0-1.0", "d" * 64, "non_prior_accuracy"):
        assert part in page.text
    assert any(a.get("role") == "img" for a in page.all("svg"))
    hard = pages["tasks/hard-choice.html"]
    assert "none" in hard.text and not any(a.get("role") == "img" for a in hard.all("svg"))


def test_failed_cells_are_on_the_first_page(pages: dict[str, Page]) -> None:
    assert "out of memory" in pages["index.html"].text and "griffin" in pages["index.html"].text


def test_downloads_are_the_table(results: Path, built: Path, pages: dict[str, Page]) -> None:
    table = collect(results)
    pd.testing.assert_frame_equal(pd.read_parquet(built / "data/results.parquet"), table)
    assert len(json.loads((built / "data/results.json").read_text())) == len(table)
    for path in (built / "data").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in pages["downloads.html"].text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_builds_are_the_same_bytes(results: Path, built: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(results, tmp_path / "other place" / results.name))
    again = contents(build(moved, tmp_path / "out").parent)
    first = contents(built)
    assert again.keys() == first.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert not any(str(results.parent).encode() in content for content in first.values()), "no path of this machine"


def test_a_second_build_replaces_its_own_pages_only(tmp_path: Path) -> None:
    writer = Writer(Store.create(tmp_path / "run"), samples=30)
    base = writer.cell(QA, "pruning")
    gone = writer.cell(QA, "pruning", method=PRUNING[0], baseline=base.id, role="method")
    out = tmp_path / "out"
    build(writer.store.root, out)
    (out / "CNAME").write_text("mine")
    assert (out / f"cells/{gone.id}.html").exists() and (out / "methods/wanda.html").exists()
    shutil.rmtree(gone.folder)
    build(writer.store.root, out)
    assert not (out / f"cells/{gone.id}.html").exists() and not (out / "methods/wanda.html").exists()
    assert (out / "CNAME").read_text() == "mine" and (out / f"cells/{base.id}.html").exists()


def test_long_leaderboards_come_in_parts(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "ROWS_OF_A_PAGE", 40)
    build(results, tmp_path)
    parts = sorted(path.name for path in (tmp_path / "leaderboard").glob("*.html"))
    assert parts == [
        "activation.html",
        "attention.html",
        "index-2.html",
        "index-3.html",
        "index.html",
        "retrieval.html",
    ]
    rows = [
        a for part in ("index", "index-2", "index-3") for a in Page(tmp_path / f"leaderboard/{part}.html").all("tr")
    ]
    assert sum("data-verdict" in a for a in rows) == 93
    assert "3 parts" in Page(tmp_path / "leaderboard/index.html").text


def test_the_same_cell_in_two_sources_has_two_pages(results: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(results, tmp_path / "other"))
    out = site.build_site([results, other], tmp_path / "out", cards=cards, descriptions={}).parent
    cell = Store.open(results).ids()[0]
    assert {p.name for p in out.glob(f"cells/{cell}*")} == {f"{cell}-{slug(s)}.html" for s in (results.name, "other")}


def test_unreadable_cells_and_empty_results(tmp_path: Path) -> None:
    writer = Writer(Store.create(tmp_path / "run"), samples=30)
    build(writer.store.root, tmp_path / "empty")
    assert "0 methods" in Page(tmp_path / "empty/index.html").text
    cell = writer.cell(QA, "pruning")
    (cell.folder / "record.json").write_text("<script>")
    index = Page(build(writer.store.root, tmp_path / "broken"))
    assert cell.id in index.text and "not JSON" in index.text


def test_names_of_counts_and_data_turn_no_page_around(tmp_path: Path) -> None:
    writer = Writer(Store.create(tmp_path / "run"), samples=30)
    cell = writer.cell(QA, "pruning", densities={"a\u202eb": 0.5}, facts={"c\u2066d": 1})
    path = cell.folder / "record.json"
    path.write_text(
        path.read_text().replace("embedded:facts", "embedded:f\\u202eacts").replace("facts-qa", "f\\u202eqa")
    )
    for page in build(writer.store.root, tmp_path / "site").parent.rglob("*.html"):
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069]", page.read_text()), page.name


def test_costs_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    writer = Writer(Store.create(tmp_path / "run"), samples=30)
    base = writer.cell(QA, "pruning")
    odd = [(1e308, 5e-324), (5e-324, 1e308), (1e308, 1.0)]
    for k, (flops, dense) in enumerate(odd):
        writer.cell(
            QA, "pruning", method=PRUNING[0], budget=k, baseline=base.id, role="method", flops=flops, flops_dense=dense
        )
    assert build(writer.store.root, tmp_path / "site").is_file()


def test_places_that_cannot_be_written_to(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the site"):
        build(results, tmp_path / "file")
    with pytest.raises(InputError, match="no results folder"):
        site.build_site([tmp_path], tmp_path / "out")


def test_the_manifest_of_an_earlier_build_reaches_no_other_files(results: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / site.MANIFEST).write_text(f"../precious\n{tmp_path / 'precious'}\n")
    build(results, out)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("higher", "delta", "side"), [(True, -0.1, "left"), (True, 0.1, "right"), (False, 0.1, "left")]
)
def test_small_drawings_put_what_is_better_to_the_right(higher: bool, delta: float, side: str) -> None:
    row = {
        "delta": delta,
        "delta_low": delta - 0.05,
        "delta_high": delta + 0.05,
        "margin": 0.05,
        "verdict": "regressed",
    }
    drawing = forest({**row, "higher_is_better": higher})
    point = float(re.search(r'cx="([\d.]+)"', drawing)[1])  # type: ignore[index]
    margin = float(re.search(r'class="margin" d="M([\d.]+)', drawing)[1])  # type: ignore[index]
    assert (point < 60) == (side == "left") and margin < 60
    assert forest({**row, "delta_low": None, "higher_is_better": True}) == ""


@pytest.fixture(scope="module")
def with_claims(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sparsebench.adapters.card import Paper
    from sparsebench.identity import digest
    from sparsebench.reports.ledger import LedgerClaim

    def claim(name: str, rule: str, url: str = "https://example.org/claim") -> LedgerClaim:
        return LedgerClaim(
            claim=name,
            paper=Paper(title="<b>Bold</b>", authors="A", year=2024, url=url, key="a"),
            says="Loses <i>nothing</i>.",
            conditions="Large models.",
            tier="M",
            rule=rule,
            declared="2025-01-01",  # type: ignore[arg-type]
            sha256=digest({"rule": rule, "alpha": 0.05}),
        )

    claims = [
        claim("lost", "random-weights 60% loses at most 5% of perplexity"),
        claim("kept", "random-weights 60% loses more than 5% of perplexity", url="javascript:alert(1)"),
        claim("absent", "nobody 10% keeps quality within 5%"),
    ]
    out = tmp_path_factory.mktemp("claims") / "out"
    return site.build_site([results], out, cards=cards, descriptions={}, claims=claims).parent


def test_claims_have_a_page_with_their_evidence(with_claims: Path, pages: dict[str, Page]) -> None:
    page = Page(with_claims / "claims.html")
    assert {"lost", "kept", "absent"} <= set(page.ids)
    for part in ("REFUTED", "HOLDS", "not measured", "tier S; the paper speaks of tier M", "before the run"):
        assert part in page.text, part
    assert "<b>Bold</b>" in page.text and not any(tag == "b" and "Bold" in str(a) for tag, a in page.tags)
    assert not any(address.startswith("javascript:") for _, address in page.addresses)
    evidence = [a for tag, a in page.addresses if tag == "a" and a.startswith("cells/")]
    assert evidence and all((with_claims / address).is_file() for address in evidence)
    assert "claims.html" not in pages, "no claims, no page"
    assert ("a", "claims.html") not in pages["index.html"].addresses
    data = json.loads((with_claims / "data/claims.json").read_text())
    assert {entry["claim"]: entry["status"] for entry in data} == {
        "lost": "REFUTED",
        "kept": "HOLDS",
        "absent": "not measured",
    }


def test_the_feed_names_results_and_claims(with_claims: Path) -> None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring((with_claims / "feed.xml").read_text())
    atom = "{http://www.w3.org/2005/Atom}"
    titles = [entry.findtext(f"{atom}title") for entry in root.iter(f"{atom}entry")]
    assert len(titles) == 3 and any(str(title).startswith("REFUTED: ") for title in titles)
    assert root.findtext(f"{atom}updated") == "2026-01-02T03:04:05Z"
    links = [link.attrib["href"].partition("#")[0] for link in root.iter(f"{atom}link")]
    assert all((with_claims / link).is_file() for link in links)


def test_one_number_a_method(pages: dict[str, Page], table: pd.DataFrame) -> None:
    from sparsebench.reports.safe import costs_of_keeping, safe_sparsities

    costs = costs_of_keeping(table)
    assert "What it costs to lose at most 5" in pages["index.html"].text
    safe = safe_sparsities(table)
    for cost in costs:
        mine = [s for s in safe if (s.row["method"], s.row["config"]) == (cost.row["method"], cost.row["config"])]
        if cost.budget:
            assert cost.flops is not None and cost.flops < 1
            assert all(s.largest is not None for s in mine if not s.obstacle), "no task on which nothing is safe"
    assert any(cost.budget for cost in costs)


def test_the_overview_shows_of_each_method_the_grid_with_most_tasks() -> None:
    from sparsebench.reports.safe import SafeSparsity
    from sparsebench.reports.views import Pages, safe_table

    def row(method: str, grid: str, task: str) -> SafeSparsity:
        same = {key: "kick" for key in ("suite", "source")} | {"model": "m", "dtype": "d", "mode": "s", "protocol": "p"}
        named = {"method": method, "config": "", "grid": grid, "task": task, "metric": "accuracy", "family": "pruning"}
        return SafeSparsity({**same, **named}, 0.2, 0.3, 3, "")

    safe = [row("wanda", "all", task) for task in ("arc", "piqa")]
    safe += [row("wanda", f"seed-{n}", "arc") for n in range(3)] + [row("teal", "all", "arc")]
    whole, short = safe_table(safe, Pages([])), safe_table(safe, Pages([]), fullest=True)
    assert [(line["method"], line["detail"]) for line in short.lines] == [("teal", ""), ("wanda", "all")]
    assert (len(whole.lines), whole.left_out, short.left_out) == (5, 0, 3)
    few = safe_table(safe, Pages([]), most=1, fullest=True)
    assert (len(few.lines), few.left_out) == (1, 4)
