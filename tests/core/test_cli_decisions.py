import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparsebench import cli
from sparsebench.cli_gates import share
from sparsebench.errors import InputError
from sparsebench.store import Store

PUBLISHED = Path(__file__).parents[2] / "leaderboard"
RESULTS = PUBLISHED / "results" / "knowledge.tar.xz"

pytestmark = pytest.mark.skipif(not RESULTS.is_file(), reason="the published results are not here")


@pytest.fixture
def sparsebench(monkeypatch, capsys):
    """Run a command in this process: exit code, standard output, standard error."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return left.value.code or 0, said.out, said.err

    return command


def test_claims_are_answered_and_gated(sparsebench) -> None:
    claim = "wanda 50% loses at most 5% of perplexity on wikitext2-perplexity"
    code, said, _ = sparsebench("claim", claim, RESULTS)
    assert code == 0 and said.startswith("REFUTED")
    assert sparsebench("claim", claim, RESULTS, "--gate")[0] == 1
    code, said, _ = sparsebench("claim", "wanda 2:4 keeps qa_wikidata within 5%", RESULTS, "--json")
    assert code == 0 and json.loads(said)["answer"] == "REFUTED"
    code, _, said = sparsebench("claim", "wanda is good", RESULTS)
    assert code == 2 and "expected `within`" in said
    assert sparsebench("claim", claim, RESULTS, "--alpha", "0.7")[0] == 2


def test_cells_are_explained(sparsebench) -> None:
    code, said, _ = sparsebench("explain", RESULTS / "cells" / "4d06ab336bcbae41", "--json")
    assert code == 0 and json.loads(said)["label"] == "teal 30%"
    code, _, said = sparsebench("explain", RESULTS)
    assert code == 2 and "which cell?" in said
    assert sparsebench("explain", RESULTS, "nothing")[0] == 2


def test_the_ledger_is_evaluated(sparsebench) -> None:
    code, said, _ = sparsebench("ledger", PUBLISHED / "claims", RESULTS)
    assert code == 0 and "HOLDS" in said.splitlines()[-1]
    assert sparsebench("ledger", RESULTS, RESULTS)[0] == 2


def test_checks_have_a_level_and_can_be_strict(sparsebench) -> None:
    same = ("check", "--baseline", RESULTS, "--candidate", RESULTS)
    code, said, _ = sparsebench(*same, "--strict", "--alpha", "0.1")
    assert code == 0 and "alpha 0.1" in said
    assert sparsebench(*same, "--alpha", "2")[0] == 2


def test_comparisons_have_a_margin(sparsebench) -> None:
    code, said, _ = sparsebench("compare", RESULTS, RESULTS, "--margin", "1%", "--format", "json")
    margins = [row["margin"] / row["baseline"] for row in json.loads(said)["rows"] if row.get("margin")]
    assert code == 0 and margins == [pytest.approx(0.01)] * len(margins) != []
    assert sparsebench("compare", RESULTS, RESULTS, "--margin", "much")[0] == 2


def test_histories_come_in_three_forms(sparsebench, tmp_path) -> None:
    import shutil

    later = shutil.copytree(Store.open(RESULTS).root, tmp_path / "later")
    code, said, _ = sparsebench("history", RESULTS, later)
    assert code == 0 and "no steps" in said
    assert ElementTree.fromstring(sparsebench("history", RESULTS, later, "--format", "atom")[1]).tag.endswith("feed")
    assert sparsebench("history", RESULTS)[0] == 2


def test_exports_are_written(sparsebench, tmp_path) -> None:
    code, _, _ = sparsebench("export", RESULTS, "--format", "model-card", "--out", tmp_path / "card.md")
    assert code == 0 and (tmp_path / "card.md").read_text().startswith("---\nmodel-index:")
    assert sparsebench("export", RESULTS, "--format", "lm-eval")[0] == 2
    assert sparsebench("export", RESULTS, "--format", "nothing")[0] == 2


def test_audits_refuse_what_is_no_checkpoint(sparsebench, tmp_path) -> None:
    code, _, said = sparsebench("audit", tmp_path)
    assert code == 2 and "no weights" in said


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("2.5 %", 0.025)])
def test_shares(text: str, value: float) -> None:
    assert share(text, "--margin") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "-1%", "100%", "five"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="--margin"):
        share(text, "--margin")
