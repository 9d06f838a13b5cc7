"""What a module imports of its own package, found without importing it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparsebench.adapters.imported import files_of

FILES = {
    "outer/__init__.py": "raise RuntimeError('imported')",
    "outer/method.py": "import numpy\nfrom . import near\nfrom outer.deep.place import thing\nimport beside",
    "outer/near.py": "def f():\n    from .late import x\n    import outer.deep.other as other\n",
    "outer/late.py": "from .near import f  # in a circle",
    "outer/deep/__init__.py": "",
    "outer/deep/place.py": "from ..up import y\nfrom .... import nowhere",
    "outer/deep/other.py": "",
    "outer/up.py": "from . import data, broken",
    "outer/broken.py": "def",
    "outer/unused.py": "",
    "outer/data.txt": "",
    "beside.py": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_all_that_is_imported_of_the_package_and_nothing_else(package: Path) -> None:
    found = files_of("outer.method")
    assert set(found) == {
        "outer",
        "outer.method",
        "outer.near",
        "outer.late",
        "outer.deep.place",
        "outer.deep.other",
        "outer.up",
        "outer.broken",
    }
    assert found["outer.deep.other"] == package / "outer/deep/other.py"
    assert "outer" not in sys.modules


def test_a_module_in_no_package_is_itself(package: Path) -> None:
    assert files_of("beside") == {"beside": package / "beside.py"}
    assert files_of("nowhere_to_be_found") == {}
    sys.modules["made_by_hand"] = ModuleType("made_by_hand")
    try:
        assert files_of("made_by_hand") == {}
    finally:
        del sys.modules["made_by_hand"]
