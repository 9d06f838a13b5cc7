"""Synthetic results, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from synthetic_results import write_results

from sparsebench.reports.collect import collect


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with all families; not to be changed."""
    root = tmp_path_factory.mktemp("reports") / "synthetic"
    write_results(root)
    return root


@pytest.fixture(scope="session")
def table(results: Path) -> Iterator[pd.DataFrame]:
    """Its tidy table; not to be changed."""
    yield collect(results)
