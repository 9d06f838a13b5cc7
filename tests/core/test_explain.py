import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsebench.cost import ModelShape
from sparsebench.errors import InputError, IntegrityError
from sparsebench.explain import account_of, explain, find_cell, text, to_json
from sparsebench.store import Store
from sparsebench.systems.sizes import recorded_shape

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "results" / "knowledge.tar.xz"
SHAPE = ModelShape(576, 30, 9, 3, 64, 64, 49152, 106168320, 106168320, 28311552, 134515008, (None,) * 30)

pytestmark = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published results are not here")


@pytest.fixture(scope="module")
def store() -> Store:
    return Store.open(PUBLISHED)


def with_sizes(cell):
    """The cell, as if its record held the sizes of the model."""
    cell.record.system["shape"] = json.loads(json.dumps(asdict(SHAPE)))
    return cell


def test_the_lines_of_every_published_cell_add_up_to_what_was_recorded(store: Store) -> None:
    for cell in store:
        found = explain(with_sizes(cell))
        assert found.totals and all(total.agrees for total in found.totals), (cell.id, found.totals)


def test_the_text_says_what_costs(store: Store) -> None:
    shown = text(explain(with_sizes(find_cell(store, "wanda 2:4 on qa-wikidata"))))
    assert "stored as 2:4" in shown and "50.00% of prunable weights left out" in shown
    assert shown.count("as recorded") == 4 and "decode, bytes read" in shown


def test_json_has_the_lines(store: Store) -> None:
    data = json.loads(json.dumps(to_json(explain(with_sizes(find_cell(store, "4d06ab33"))))))
    assert data["label"] == "teal 30%" and sum(line["dense"] for line in data["lines"]) == 92470716923904.0
    assert all(total["agrees"] for total in data["totals"])


def test_an_edited_total_shows(store: Store) -> None:
    cell = with_sizes(find_cell(store, "4d06ab336bcbae41"))
    cell.record.outcome.flops = 1.0
    assert "but 1 was recorded" in text(explain(cell))


def test_without_sizes_the_counters_are_shown(store: Store) -> None:
    found = explain(find_cell(store, "4d06ab336bcbae41"), look_up=False)
    assert found.account is None and "prefill.activation.zeros" in text(found)


@pytest.mark.parametrize(
    ("name", "said"),
    [("wanda 10%", "2 cells are called"), ("wanda 11%", "there is no cell"), ("", "there is no cell")],
)
def test_cells_that_are_not_one_are_named(store: Store, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        find_cell(store, name)
    assert "there are: " in str(error.value.hint)


def test_sizes_are_checked() -> None:
    assert recorded_shape({}) is None
    assert recorded_shape({"shape": json.loads(json.dumps(asdict(SHAPE)))}) == SHAPE
    for wrong in ({}, {**asdict(SHAPE), "layers": "many"}, {**asdict(SHAPE), "windows": ["a"]}, "x"):
        with pytest.raises(IntegrityError):
            recorded_shape({"shape": wrong})


def test_weights_that_were_removed_count_as_left_out(store: Store) -> None:
    """Half of the blocks removed and half of the rest zero: a quarter of the weights run."""
    cell = find_cell(store, "wanda 50% on wikitext2-perplexity")
    small = {**asdict(SHAPE), "linear_params": 53084160, "stored_params": 53084160, "windows": [None] * 15}
    cell.record.system |= {"shape": small, "unreduced": {**asdict(SHAPE), "windows": [None] * 30}}
    cell.record.outcome.sparsity = 0.75
    shape = recorded_shape(cell.record.system)
    assert shape is not None
    linear = next(line for line in account_of(cell.spec, cell.record, shape).lines if line.item == "linear")
    assert linear.sparse / linear.dense == pytest.approx(0.25)
