import subprocess
import sys

import pytest

from sparsebench.data import embedded
from sparsebench.data.catalogue import catalogue, data_set
from sparsebench.data.sources import check, resolve
from sparsebench.errors import UnknownNameError


def test_every_source_is_well_formed():
    assert len({entry.id for entry in catalogue()}) == len(catalogue())
    for entry in catalogue():
        assert entry.title
        assert entry.license
        if entry.sources:
            check(entry.sources)


def test_every_embedded_data_set_is_listed_and_needs_nothing():
    listed = {source["embedded"] for entry in catalogue() for source in entry.sources if "embedded" in source}
    assert listed == set(embedded.MODULES)
    for name in listed:
        assert data_set(name).needs == ()
        assert data_set(name).available()
        assert embedded.version(name)
        assert resolve(data_set(name).sources).sha256


def test_local_data_is_available_when_it_is_there(data_root):
    assert not data_set("gsm8k").available()
    assert data_set("gsm8k").needs[0] == "SPARSEBENCH_DATA: gsm8k/test.jsonl"
    (data_root / "gsm8k").mkdir()
    (data_root / "gsm8k" / "test.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    assert data_set("gsm8k").available()
    assert not data_set("mmlu").available()


def test_cached_downloads_and_hub_data_are_available(cache, data_root, tmp_path, monkeypatch):
    entry = data_set("piqa")
    assert not entry.available()
    folder = cache / "urls" / entry.sources[1]["sha256"]
    folder.mkdir(parents=True)
    (folder / "piqa.jsonl").write_text("")
    assert entry.available()

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not data_set("wikitext2-test").available()
    (tmp_path / "hub" / "datasets--Salesforce--wikitext" / "snapshots").mkdir(parents=True)
    assert data_set("wikitext2-test").available()


def test_a_mistyped_name():
    with pytest.raises(UnknownNameError, match="did you mean 'arc-easy'"):
        data_set("arc-esay")


def test_listing_imports_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "numpy", "huggingface_hub", "pyarrow")
    code = (
        "import sys; from sparsebench.data.catalogue import catalogue; [d.available() for d in catalogue()]; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
