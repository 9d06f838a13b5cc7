"""The perplexity that papers on pruning give: the text as their code joins it, and their formula."""

from __future__ import annotations

import math
from pathlib import Path

import models
import pytest
import torch
import yaml

from sparsebench.tasks import registry
from sparsebench.tasks.builders import build_rows

TEXT = " \n = Title = \n \n The first line . \n The second line , much longer than the first one was . \n \n" * 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "text.txt"
    found.write_text(TEXT)
    return found


def test_lines_are_joined_as_the_rows_of_the_hub(path: Path) -> None:
    # The rows there: blank lines are empty, others keep their line feed.
    rows = [
        "",
        " = Title = \n",
        "",
        " The first line . \n",
        " The second line , much longer than the first one was . \n",
        "",
    ]
    (row,) = build_rows("wanda-text", [{"path": str(path)}], {}, None).rows
    assert row["text"] == "\n\n".join(rows * 6)


def test_the_formula_of_the_released_code_gives_the_same_number(path: Path, tmp_path: Path) -> None:
    whole = yaml.safe_load(
        (Path(models.__file__).parents[1] / "suites/tasks/wikitext2-perplexity-wanda.yaml").read_text()
    )
    (tmp_path / "t.yaml").write_text(
        yaml.safe_dump({**whole, "task": "t", "window": 32, "data": [{"path": str(path)}]})
    )
    system = models.tiny_system()
    bound = registry.get(str(tmp_path / "t.yaml")).bind(system.tokenizer)
    value = bound.metrics[0].value(bound.evaluate(system).samples)
    (row,) = build_rows("wanda-text", [{"path": str(path)}], {}, None).rows
    ids = torch.tensor(system.tokenizer(row["text"], add_special_tokens=False).input_ids)
    count, losses = len(ids) // 32, []
    for window in ids[: count * 32].reshape(count, 1, 32):
        with torch.no_grad():
            logits = system.model(window).logits[0, :-1]
        losses.append(32 * float(torch.nn.functional.cross_entropy(logits, window[0, 1:])))
    assert value == pytest.approx(math.exp(sum(losses) / (count * 32)), rel=1e-4)
