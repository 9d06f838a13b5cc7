"""Retrieval results for TREC's and MTEB's tools, from a suite that was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsebench.cli import app
from sparsebench.errors import InputError
from sparsebench.reports.retrieval_out import with_depth, write_mteb, write_trec
from sparsebench.retrieval.mteb import metric_name
from sparsebench.retrieval.run import read_trec
from sparsebench.suite_run import run_suite


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    suite = {
        **{"suite": "s", "version": 1, "systems": {"lexical": {"kind": "lexical"}}},
        "grids": [
            {
                **{"name": "g", "system": "lexical", "baseline": "", "tasks": ["documentation-search"]},
                "methods": ["bm25", {"method": "bm25", "knobs": {"b": 0.5}}],
            }
        ],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    outcome = run_suite(str(folder / "suite.yaml"), folder / "out", limit=20)
    assert outcome.failed == 0
    return folder / "out"


def test_runs_are_read_back(results: Path, tmp_path: Path) -> None:
    places = write_trec([results], tmp_path)
    assert [place.parent.name for place in places] == ["documentation-search"] * 2
    run = read_trec(places[0])
    assert len(run.query_ids) == 20 and run.hits.counts.max() == 10
    first = [line.split() for line in places[0].read_text().splitlines() if line.startswith(run.query_ids[0])]
    assert run.ranking(run.query_ids[0]) == [fields[2] for fields in first]


def test_ids_with_white_space_stand_in_no_run(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _: ["d 7"])
    with pytest.raises(InputError, match="'d 7' cannot stand in a TREC run"):
        write_trec([results], tmp_path)


def test_results_have_mtebs_form(results: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(results), "--format", "mteb", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    places = sorted(tmp_path.glob("lexical/*/documentation-search.json"))
    assert len(places) == 2
    data = json.loads(places[0].read_text())
    (scores,) = data["scores"]["test"]
    assert scores["main_score"] == scores["ndcg_at_10"] > 0.3
    assert set(scores) >= {"recall_at_100", "mrr_at_10", "map_at_100", "hf_subset", "languages"}


def test_results_of_language_models_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "suite.json").write_text('{"suite": {"suite": "s", "version": 1}, "lock": {}}')
    with pytest.raises(InputError):
        write_mteb([tmp_path], tmp_path / "out")
    with pytest.raises(InputError):
        write_trec([tmp_path], tmp_path / "out")


def test_a_task_metric_without_a_cut_off_has_that_of_the_rankings() -> None:
    named = [metric_name(with_depth(metric)) for metric in ("MAP", "MRR", "MAP@100")]
    assert named == ["map_at_1000", "mrr_at_1000", "map_at_100"]
