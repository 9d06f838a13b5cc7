"""What a suite declares before it is run: level, margins and resamples."""

from __future__ import annotations

from pydantic import ValidationError

from sparsebench.errors import IntegrityError
from sparsebench.reports.sources import Source
from sparsebench.stats import Margin
from sparsebench.suite import Conclude


def conclusions(source: Source) -> Conclude:
    """What a source's suite concludes, and by which rule; the defaults where it says nothing.

    Raises:
        IntegrityError: Its rules are wrong.
    """
    suite = source.suite.get("suite")
    stated = suite.get("conclude") if isinstance(suite, dict) else None
    if stated is None:
        return Conclude()
    try:
        return Conclude.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{source.name}/suite.json: conclude.{where}: {first['msg']}") from None


def margin_of(rules: Conclude, task: str, metric: str) -> Margin | None:
    """The margin that a suite declares for a metric of a task."""
    stated = rules.margin(task, metric)
    if stated is None:
        return None
    return Margin(stated.points, "points") if stated.points is not None else Margin(stated.relative or 0.0, "relative")
