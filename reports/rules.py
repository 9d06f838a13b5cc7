"""What a suite declares before it is run: level, margins and resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from sparsebench.errors import IntegrityError
from sparsebench.reports.sources import Source
from sparsebench.stats import Margin
from sparsebench.suite import Conclude
from sparsebench.suite import Margin as DeclaredMargin


def conclusions(source: Source) -> Conclude:
    """What a source's suite concludes, and by which rule; the defaults where it says nothing.

    Raises:
        IntegrityError: Its rules are wrong.
    """
    stated = _suite(source).get("conclude")
    if stated is None:
        return Conclude()
    try:
        return Conclude.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{source.name}/suite.json: conclude.{where}: {first['msg']}") from None


def _suite(source: Source) -> dict[str, Any]:
    suite = source.suite.get("suite")
    return suite if isinstance(suite, dict) else {}


def margin_of(rules: Conclude, task: str, metric: str) -> Margin | None:
    """The margin that a suite declares for a metric of a task."""
    stated = rules.margin(task, metric)
    if stated is None:
        return None
    return Margin(stated.points, "points") if stated.points is not None else Margin(stated.relative or 0.0, "relative")


def with_largest_loss(sources: Sequence[Source], loss: float, alpha: float | None = None) -> list[Source]:
    """The same sources, as if their suites had declared one relative loss as the margin of everything.

    Args:
        sources: Opened results folders.
        loss: A fraction of the baseline's value.
        alpha: Level of the tests; each suite's own unless told.
    """
    everything = {"*": {"*": DeclaredMargin(relative=loss)}}
    found = []
    for source in sources:
        rules = conclusions(source).model_copy(update={"margins": everything})
        rules = rules if alpha is None else rules.model_copy(update={"alpha": alpha})
        suite = {**_suite(source), "conclude": rules.model_dump(mode="json", exclude_none=True)}
        found.append(replace(source, suite={**source.suite, "suite": suite}))
    return found


def declares_only(source: Source, loss: float) -> bool:
    """Whether a suite's margin of everything is that relative loss already."""
    margins = conclusions(source).margins
    return "*" in margins.get("*", {}) and all(
        margin.points is None and margin.relative == loss for metrics in margins.values() for margin in metrics.values()
    )
