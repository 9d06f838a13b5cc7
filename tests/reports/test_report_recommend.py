import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic_results import GUESS, LEVELS, PPL, QA, SyntheticMethod, Writer, write_suite

from sparsebench.cost import ModelShape, Request
from sparsebench.errors import InputError
from sparsebench.reports import recommend as recommending
from sparsebench.reports.recommend import Wanted, recommend, text, to_json
from sparsebench.store import Store

SHAPE = ModelShape(64, 4, 4, 2, 16, 16, 512, 200_000, 200_000, 32_768, 300_000, (None,) * 4)
WANDA = SyntheticMethod("wanda", "pruning", LEVELS, 0.3)
OTHER = SyntheticMethod("unheard-of", "pruning", LEVELS, 0.3)


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic model has no files: give it sizes, and one linear layer that pruning may prune."""
    import torch

    from sparsebench.systems import sizes, weights
    from sparsebench.systems.causal_lm import LinearSite

    site = LinearSite("l", torch.nn.Linear(400, 500, bias=False, device="meta"), 0, False)
    monkeypatch.setattr(sizes, "weightless", lambda ref: SimpleNamespace(shape=SHAPE, linears=[site], stored={}))
    monkeypatch.setattr(weights, "prunable", lambda system: system.linears)


def results(folder: Path, *methods: SyntheticMethod, tasks: tuple[Any, ...] = (PPL, QA), samples: int = 600) -> Path:
    store = Store.create(folder)
    write_suite(store)
    Writer(store, samples=samples).grid("pruning", methods or (WANDA,), tasks)
    return folder


def ask(folder: Path, max_loss: float = 0.3, **changes: Any):
    return recommend(replace(Wanted(Request(512, 128), max_loss), **changes), folder)


def test_what_keeps_the_loss_is_ranked_by_cost(tmp_path: Path) -> None:
    found = ask(results(tmp_path / "a"))
    costs = [c.cost for c in found.kept]
    assert found.kept and costs == sorted(costs) and all(cost is not None and cost < 1 for cost in costs)
    assert all(c.worst < 0.3 and c.p <= 0.05 for c in found.kept)
    assert found.tasks == ("facts-qa", "prose-perplexity")
    assert len(found.kept) + len(found.open) + found.lost == len(LEVELS)


def test_a_smaller_loss_keeps_fewer(tmp_path: Path) -> None:
    folder = results(tmp_path / "a")
    wide, narrow = ask(folder, 0.5), ask(folder, 0.02)
    assert {c.label for c in narrow.kept} < {c.label for c in wide.kept}


def test_nothing_left_means_dense_or_quantised(tmp_path: Path) -> None:
    found = ask(results(tmp_path / "a"), 0.0001)
    assert not found.kept and "dense is better, or quantising" in found.advice
    assert 0.4 < found.integers["int8"] < 1 and found.integers["int4"] < found.integers["int8"]


def test_int8_is_named_where_it_costs_less(tmp_path: Path) -> None:
    found = ask(results(tmp_path / "a"), request=Request(16, 512))
    assert min(c.cost for c in found.kept if c.cost) > found.integers["int8"]
    assert found.advice.startswith("int8 is better, if its loss is small enough")


def test_simulated_rows_have_no_speed_and_executed_ones_do(tmp_path: Path) -> None:
    simulated = ask(results(tmp_path / "a"))
    assert "no speed is known" in simulated.advice and not any(c.speed for c in simulated.kept)
    executed = ask(results(tmp_path / "b", replace(WANDA, mode="executed")))
    assert "Executed: wanda" in executed.advice and executed.kept[0].speed == {"tokens_per_second": 812.5}


def test_a_task_that_was_not_measured_is_not_guessed(tmp_path: Path) -> None:
    folder = results(tmp_path / "a")
    store = Store.open(folder)
    gone = next(c for c in store if c.spec.task.id == QA.id and c.record.placement.label == "wanda 10%")
    import shutil

    shutil.rmtree(gone.folder)
    found = ask(folder, 0.5)
    (open_,) = [c for c in found.open if c.missing]
    assert open_.label == "wanda 10%" and open_.missing == [QA.id] and "not on all tasks" in text(found)
    assert not found.kept, "nor is a sparser level, for levels are asked in order"


def test_tasks_without_signal_do_not_count(tmp_path: Path) -> None:
    assert ask(results(tmp_path / "a", tasks=(PPL, GUESS))).tasks == (PPL.id,)


def test_methods_that_are_not_installed_are_kept_without_a_price(tmp_path: Path) -> None:
    found = ask(results(tmp_path / "a", OTHER))
    assert found.kept and all(c.cost is None for c in found.kept) and "unknown" in text(found)


def test_more_methods_share_the_level(tmp_path: Path) -> None:
    alone = {c.label: c.p for c in ask(results(tmp_path / "a")).kept}
    many = {c.label: c.p for c in ask(results(tmp_path / "b", WANDA, OTHER)).kept}
    assert all(many[label] >= p for label, p in alone.items() if label in many)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_loss": 1.5}, "between 0 and 1"),
        ({"model": "llama"}, "unknown model"),
        ({"request": Request(0, 0)}, "some tokens"),
    ],
)
def test_wrong_wishes_are_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        recommend(replace(Wanted(Request(512, 128), 0.05), **changes), results(tmp_path / "a", samples=60))


def test_json_and_text_say_the_same(tmp_path: Path) -> None:
    found = ask(results(tmp_path / "a"))
    data = json.loads(json.dumps(to_json(found)))
    assert [row["label"] for row in data["recommended"]] == [c.label for c in found.kept]
    assert all(row["label"] in text(found) for row in data["recommended"])
    assert data["advice"] == found.advice and asdict(found)["wanted"]["max_loss"] == 0.3
    assert recommending.BALANCE > 1
