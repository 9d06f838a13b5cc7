import json
import math
import shutil
from pathlib import Path

import pytest

from sparsebench.errors import InputError, IntegrityError
from sparsebench.reports.check import compare
from sparsebench.reports.lm_eval_files import is_log, read_log

LOGS = Path(__file__).parent / "lm_eval_logs"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LOGS / "dummy-a", tmp_path / "log"))


def reported(folder: Path) -> dict[str, dict[str, float]]:
    (file,) = folder.glob("results_*.json")
    return dict(json.loads(file.read_text())["results"])


@pytest.mark.parametrize("name", ["dummy-a", "dummy-b"])
def test_every_metric_gives_the_value_that_lm_eval_reports(name: str) -> None:
    values = reported(LOGS / name)
    tasks = read_log(LOGS / name)
    assert set(tasks) == {"toy_choice", "toy_generate", "toy_perplexity"}
    seen = set()
    for task, logged in tasks.items():
        assert logged.model == name
        for metric in logged.metrics:
            key = f"{metric.name},none" if "(" not in metric.name else metric.name.replace(" (", ",").rstrip(")")
            assert metric.value(logged.samples.frame) == pytest.approx(values[task][key], rel=1e-12)
            seen.add(metric.name)
    assert seen == {
        "acc",
        "acc_norm",
        "exact_match (strict-match)",
        "exact_match (flexible-extract)",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
    }


def test_metrics_that_are_no_sums_are_left_out_and_named() -> None:
    assert list(read_log(LOGS / "dummy-a")["toy_choice"].left_out) == ["f1"]


def test_directions_kinds_and_chance() -> None:
    tasks = read_log(LOGS / "dummy-a")
    metrics = {m.name: m for logged in tasks.values() for m in logged.metrics}
    assert metrics["acc"].kind == "binary" and metrics["acc"].chance == 0.5 and metrics["acc"].higher_is_better
    assert metrics["word_perplexity"].transform == "exp" and not metrics["word_perplexity"].higher_is_better
    assert metrics["bits_per_byte"].transform == "identity" and not metrics["bits_per_byte"].higher_is_better


def test_two_logs_are_compared_sample_by_sample() -> None:
    result = compare(LOGS / "dummy-a", LOGS / "dummy-b")
    rows = {row.what: row for row in result.rows if row.judgement}
    a, b = reported(LOGS / "dummy-a"), reported(LOGS / "dummy-b")
    perplexity = rows["word_perplexity"].judgement
    assert perplexity and perplexity.comparison
    delta = b["toy_perplexity"]["word_perplexity,none"] - a["toy_perplexity"]["word_perplexity,none"]
    assert perplexity.comparison.delta == pytest.approx(delta, rel=1e-9)
    accuracy = rows["acc"].judgement
    assert accuracy and accuracy.comparison and accuracy.comparison.lost is not None
    flips = accuracy.comparison.gained - accuracy.comparison.lost  # type: ignore[operator]
    assert flips == round(30 * (b["toy_choice"]["acc,none"] - a["toy_choice"]["acc,none"]))
    assert rows["exact_match (strict-match)"].verdict == "same"
    assert rows["acc"].verdict == "no signal", "a model that guesses"
    assert "models: dummy-a and dummy-b" in result.notes


def test_a_margin_may_be_given() -> None:
    result = compare(LOGS / "dummy-a", LOGS / "dummy-b", margin=0.5, alpha=0.1)
    judgement = next(row.judgement for row in result.rows if row.what == "bits_per_byte")
    assert judgement and judgement.comparison and judgement.alpha == result.alpha == 0.1
    assert judgement.comparison.margin == pytest.approx(0.5 * judgement.comparison.dense)


@pytest.mark.parametrize("key", ["doc_hash", "target_hash", "prompt_hash"])
def test_other_documents_or_prompts_are_refused(log: Path, key: str) -> None:
    (file,) = log.glob("samples_toy_choice_*")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3][key] = "other"
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = [row for row in compare(LOGS / "dummy-a", log).rows if row.name == "toy_choice"]
    assert [row.verdict for row in rows] == ["refused"]
    assert ("definition" if key == "prompt_hash" else "data") in rows[0].reason


def test_order_of_lines_has_no_part_in_it(log: Path) -> None:
    (file,) = log.glob("samples_toy_perplexity_*")
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert {row.verdict for row in compare(LOGS / "dummy-a", log).rows if row.name == "toy_perplexity"} == {"same"}


def test_files_or_folders_are_logs_and_results_folders_are_not(results: Path, tmp_path: Path) -> None:
    (file,) = (LOGS / "dummy-a").glob("results_*.json")
    assert is_log(LOGS / "dummy-a") and is_log(file) and is_log(LOGS)
    assert not is_log(results) and not is_log(tmp_path)
    assert read_log(file).keys() == read_log(LOGS / "dummy-a").keys()
    with pytest.raises(InputError, match="not of one kind"):
        compare(LOGS / "dummy-a", results)


def test_errors_say_what_is_wrong(log: Path) -> None:
    with pytest.raises(InputError, match="2 lm-eval results files"):
        read_log(LOGS)
    (samples,) = log.glob("samples_toy_choice_*")
    content = samples.read_text()
    samples.write_text(content + "{")
    with pytest.raises(IntegrityError, match=":31: not a sample"):
        read_log(log)
    samples.write_text(content + content.splitlines()[0])
    with pytest.raises(IntegrityError, match="document 0 comes twice"):
        read_log(log)
    samples.unlink()
    with pytest.raises(InputError, match="--log_samples") as found:
        read_log(log)
    assert found.value.hint
    (results_file,) = log.glob("results_*")
    results_file.write_text("[]")
    with pytest.raises(IntegrityError, match="not an lm-eval results file"):
        read_log(log)


def test_nothing_is_invented_for_a_value_that_the_samples_do_not_give(log: Path) -> None:
    (file,) = log.glob("results_*")
    data = json.loads(file.read_text())
    data["results"]["toy_choice"]["acc,none"] += 0.01
    data["results"]["toy_perplexity"]["word_perplexity,none"] = math.nan
    file.write_text(json.dumps(data))
    tasks = read_log(log)
    assert set(tasks["toy_choice"].left_out) == {"acc", "f1"}
    assert set(tasks["toy_perplexity"].left_out) == {"word_perplexity"}
