import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_results import CHOICE, LEVELS, PPL, QA, SyntheticMethod, Writer, write_suite

from sparsebench.budget import Budget
from sparsebench.errors import InputError
from sparsebench.records import CellSpec
from sparsebench.reports import claim_formats, ledger
from sparsebench.reports.claim_answer import tier_of
from sparsebench.reports.claim_language import Claim, Member, parse
from sparsebench.reports.claims import ask
from sparsebench.reports.runs import whole_runs, without_trials
from sparsebench.reports.sources import Cells, open_sources
from sparsebench.stats import Margin, compare
from sparsebench.stats.limits import Limit, loss_against
from sparsebench.store import Store

METHOD = SyntheticMethod("method", "pruning", LEVELS, 0.5, knobs={"group": "row"})
RIVAL = SyntheticMethod("rival", "pruning", LEVELS, 0.9)
PUBLISHED = Path(__file__).parents[2] / "leaderboard"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("claims") / "run"
    store = Store.create(root)
    write_suite(store)
    writer = Writer(store, samples=400)
    writer.grid("pruning", (METHOD, RIVAL), (QA, PPL, CHOICE))
    return root


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "wanda 50% loses at most 5% of perplexity on wikitext2-perplexity",
            {"direction": "below", "limit": 0.05, "what": "perplexity", "tasks": ("wikitext2-perplexity",)},
        ),
        ("wanda 2:4 keeps qa_wikidata within 5%", {"what": "qa_wikidata", "limit": 0.05, "direction": "below"}),
        ("wanda 30% loses more than 2 points on a and b for Smol", {"direction": "above", "points": True, "limit": 2.0}),
        ("wanda 50% beats magnitude 50% on all tasks", {"limit": 0.0, "against": (Member("magnitude", Budget("sparsity", 0.5)),)}),
        ("wanda 50% beats magnitude 50% by at least 3%", {"limit": -0.03, "direction": "below"}),
        ("quest 256 tokens is within 1% of dense", {"against": (Member("dense"),), "limit": 0.01}),
        ("wanda 50% costs at most 70% of the dense FLOPs", {"measure": "flops", "limit": 0.7}),
        ("teal 40% has at least 39.5% sparsity", {"measure": "sparsity", "direction": "above", "limit": 0.395}),
        ("wanda 10% improves perplexity by 1%", {"limit": -0.01, "what": "perplexity"}),
        ("wanda 30% + streaming-llm 256 tokens keeps quality within 5 %", {"what": "", "limit": 0.05}),
    ],
)  # fmt: skip
def test_sentences_are_read(sentence: str, expected: dict[str, Any]) -> None:
    claim = parse(sentence)
    assert {name: getattr(claim, name) for name in expected} == expected


def test_knobs_budgets_and_stacks_are_read() -> None:
    claim = parse("wanda 2:4 with compare_group=row, stats_pass=dense + quest 64 tokens keeps quality within 5%.")
    first, second = claim.subject
    assert first == Member("wanda", Budget("pattern", "2:4"), (("compare_group", "row"), ("stats_pass", "dense")))
    assert second.budget == Budget("tokens", 64)
    with pytest.raises(InputError, match="at least 0 and below 1"):
        parse("wanda 150% keeps quality within 5%")


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("", "expected a method"),
        ("wanda 50%", "the sentence ends; expected `keeps`"),
        ("wanda 50% is fast", "expected `within`"),
        ("wanda 50% loses 5%", "expected `at most`"),
        ("wanda 50% loses at most five", "an amount"),
        ("wanda 50 keeps quality within 5%", "expected `tokens`"),
        ("wanda 50% keeps quality within 5% tomorrow", "the end of the sentence"),
        ("wanda 50% with row keeps quality within 5%", "KNOB=VALUE"),
    ],
)
def test_what_is_not_understood_says_what_would_be(sentence: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse(sentence)
    assert said in error.value.message and "for instance" in str(error.value.hint)


@given(st.text(max_size=80))
def test_any_text_is_a_claim_or_an_input_error(text: str) -> None:
    try:
        assert isinstance(parse(text), Claim)
    except InputError:
        pass


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("method 60% loses more than 5% of perplexity", "HOLDS"),
        ("method 60% loses at most 5% of perplexity", "REFUTED"),
        ("method 10% loses at most 5% of perplexity", "HOLDS"),
        ("method 10% keeps facts_qa within 2%", "UNDERPOWERED"),
        ("method 50% beats rival 50% on prose-perplexity", "HOLDS"),
        ("rival 50% beats method 50% on prose-perplexity", "REFUTED"),
        ("method 50% has at least 50% sparsity", "HOLDS"),
        ("method 50% costs at most 50% of the FLOPs", "REFUTED"),
        ("method 60% is within 90% of dense in perplexity", "HOLDS"),
        ("method 10% loses at most 50% on all tasks", "HOLDS"),
    ],
)
def test_answers(folder: Path, sentence: str, answer: str) -> None:
    found = ask(sentence, folder)
    assert found.answer == answer, claim_formats.text(found)
    assert found.answer in claim_formats.text(found)
    assert json.loads(claim_formats.to_json(found))["answer"] == answer


def test_an_underpowered_claim_says_how_many_samples_it_lacks(folder: Path) -> None:
    found = ask("method 10% keeps facts_qa within 2%", folder)
    (part,) = found.parts
    assert part.n_needed is not None and part.n is not None and part.n_needed > part.n
    assert found.n_still_needed == part.n_needed - part.n
    assert f"{found.n_still_needed:,} more samples" in claim_formats.text(found)


def test_a_claim_about_several_holds_where_each_does(folder: Path) -> None:
    one = ask("method 60% loses more than 5% on prose-perplexity", folder)
    both = ask("method 60% loses more than 5% on prose-perplexity and easy-choice", folder)
    assert one.answer == "HOLDS" and len(both.parts) == 2
    assert (both.answer == "HOLDS") == all(part.answer == "HOLDS" for part in both.parts)


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("methd 50% keeps quality within 5%", "did you mean 'method'"),
        ("method 45% keeps quality within 5%", "there are: 10% group=row"),
        ("method 50% keeps quality within 5% on prose-perplexty", "did you mean 'prose-perplexity'"),
        ("method 50% keeps bleu within 5%", "unknown metric"),
        ("method 50% keeps quality within 5% for llama", "unknown model"),
        ("method 50% with group=layer keeps quality within 5%", "is not among these results"),
        ("method 50% loses at most 1 point of perplexity", "per cent"),
    ],
)
def test_what_was_not_measured_is_said(folder: Path, sentence: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        ask(sentence, folder)
    assert said in str(error.value)


def test_a_trial_that_was_left_in_a_folder_is_not_asked(folder: Path) -> None:
    cells = list(Cells(open_sources([folder])))
    trials = [(s, replace(c, id=f"{c.id[:-1]}x", spec=_limited(c.spec, 3))) for s, c in cells]
    smaller = [(s, replace(c, spec=_limited(c.spec, 2))) for s, c in cells]
    assert whole_runs([*cells, *trials]) == cells
    assert whole_runs([*cells[:1], *trials]) == [*cells[:1], *trials[1:]]
    assert whole_runs([*trials, *smaller]) == trials
    (source,) = open_sources([folder])
    tried = replace(source, cells=source.cells | {cell.id: cell for _, cell in trials})
    assert len(tried.cells) == 2 * len(source.cells) and without_trials(tried) == source


def _limited(spec: CellSpec, limit: int) -> CellSpec:
    return spec.model_copy(update={"task": spec.task.model_copy(update={"limit": limit})})


def test_no_signal_is_no_answer(tmp_path: Path) -> None:
    from synthetic_results import GUESS

    store = Store.create(tmp_path / "run")
    write_suite(store)
    Writer(store, samples=300).grid("pruning", (METHOD,), (GUESS,))
    found = ask("method 10% keeps quality within 20%", tmp_path / "run")
    assert found.answer == "UNDERPOWERED" and "no signal" in found.reason and found.n_still_needed is None


def test_noise_stands_in_the_way(folder: Path) -> None:
    found = ask("method 10% loses at most 0.01% of perplexity", folder)
    assert found.answer == "UNDERPOWERED" and "noise" in found.reason


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2]), st.booleans())
def test_limits_agree_with_the_comparison(seed: int, size: float, higher: bool) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.random(120) < 0.6).astype(float)
    sparse = np.where(rng.random(120) < 0.15, 1 - dense, dense)
    if not dense.any():
        return
    ours = loss_against(Limit(size), dense, sparse, kind="binary", higher_is_better=higher)
    theirs = compare(dense, sparse, kind="binary", higher_is_better=higher, margin=Margin(size, "relative"))
    assert ours.p_below == pytest.approx(theirs.p_noninferior)
    assert ours.low <= ours.loss <= ours.high
    assert min(ours.p_below, ours.p_above) <= 0.6, "the continuity correction of either side"


def test_a_true_limit_is_rejected_no_oftener_than_alpha() -> None:
    rng = np.random.default_rng(7)
    wrong = [0, 0]
    for _ in range(400):
        dense = (rng.random(250) < 0.5).astype(float)
        lost = (rng.random(250) < 0.1) & (dense == 1)  # a loss of 5 points
        found = loss_against(Limit(0.05, "points"), dense, np.where(lost, 0.0, dense), kind="binary")
        wrong[0] += found.p_below <= 0.05
        wrong[1] += found.p_above <= 0.05
    assert max(wrong) <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_enough_samples_by_the_answer_decide() -> None:
    rng = np.random.default_rng(3)

    def pair(n: int) -> tuple[np.ndarray, np.ndarray]:
        dense = (rng.random(n) < 0.6).astype(float)
        return dense, np.where((rng.random(n) < 0.02) & (dense == 1), 0.0, dense)

    found = loss_against(Limit(0.04), *pair(200), kind="binary")
    assert found.needed is not None
    many = [loss_against(Limit(0.04), *pair(max(found.needed, 200)), kind="binary").p_below for _ in range(40)]
    assert sum(p <= 0.05 for p in many) >= 20


def test_tiers() -> None:
    assert [tier_of([x]) for x in (135e6, 1.2e9, 8e9, 70e9)] == ["S", "M", "M", "L"]
    assert tier_of([70e9, 135e6]) == "S" and tier_of([None]) == ""


CLAIM = """claim: {name}
paper: {{title: A paper, authors: A. Author, year: 2024, url: "https://example.org", key: a}}
says: "Method 10 % loses nothing."
conditions: "Large models."
tier: M
rule: "{rule}"
declared: "{declared}"
sha256: {sha256}
"""


def write_claim(folder: Path, name: str, rule: str, declared: str = "2025-12-31", sha256: str = "") -> Path:
    from sparsebench.identity import digest

    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.yaml"
    digest_ = sha256 or digest({"rule": rule, "alpha": 0.05})
    file.write_text(CLAIM.format(name=name, rule=rule, declared=declared, sha256=digest_))
    return file


def test_the_ledger_asks_results(folder: Path, tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    write_claim(claims, "kept", "method 10% loses at most 5% of perplexity")
    write_claim(claims, "late", "method 60% loses at most 5% of perplexity", declared="2026-01-02")
    write_claim(claims, "unknown", "sparsegpt 60% loses at most 5% of perplexity")
    rows = {row.entry.claim: row for row in ledger.evaluate(ledger.read_claims(claims), [folder])}
    assert [rows[name].status for name in ("kept", "late", "unknown")] == ["HOLDS", "REFUTED", "not measured"]
    assert rows["kept"].declared_before is True and rows["late"].declared_before is False
    assert "the paper speaks of tier M" in rows["kept"].scope
    text = ledger.text(list(rows.values()))
    assert "1 HOLDS, 1 REFUTED, 1 not measured" in text and "exploratory" in text
    assert {entry["status"] for entry in json.loads(ledger.to_json(list(rows.values())))} == {"HOLDS", "REFUTED", "not measured"}  # fmt: skip


def test_a_rule_that_was_changed_does_not_load(tmp_path: Path) -> None:
    file = write_claim(tmp_path / "claims", "kept", "method 10% loses at most 5% of perplexity")
    file.write_text(file.read_text().replace("at most 5%", "at most 9%"))
    with pytest.raises(InputError, match=r"kept\.yaml:\d+: sha256: the rule is not the one that was hashed"):
        ledger.read_claims(file)


def test_a_rule_that_is_no_sentence_does_not_load(tmp_path: Path) -> None:
    file = write_claim(tmp_path / "claims", "vague", "method 10% is good")
    with pytest.raises(InputError, match=r"vague\.yaml:\d+: rule: .*expected `within`"):
        ledger.read_claims(file)


@pytest.mark.skipif(not (PUBLISHED / "claims").is_dir(), reason="the published claims are not here")
def test_the_published_claims_load_and_are_answered() -> None:
    claims = ledger.read_claims(PUBLISHED / "claims")
    rows = ledger.evaluate(claims, [PUBLISHED / "results" / "knowledge.tar.xz"])
    assert len(rows) >= 5 and all(row.found is not None for row in rows)
    assert {row.status for row in rows} == {"HOLDS", "REFUTED"}
    assert all(row.found is not None and row.found.tier == "S" for row in rows)
