"""BEIR's collections as tasks: all there by name, read from folders, archives and the hub, and missed in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_loaders import folder, hub_folder

from sparsebench.data import sources
from sparsebench.errors import InputError, MissingError
from sparsebench.retrieval.published import beir_name, published
from sparsebench.tasks import registry

TASKS = [name for name in registry.names() if name.startswith("beir-")]


def test_every_published_collection_has_a_task() -> None:
    wanted = {name for one in published() for name in one.figures}
    assert wanted <= {beir_name(task) for task in TASKS}
    whole = {beir_name(task).split("-")[0] if "cqadupstack" in task else beir_name(task) for task in TASKS}
    assert len(whole) == 19  # MS MARCO and the eighteen that BEIR tests on


@pytest.mark.parametrize("task", ["beir-scifact", "beir-robust04", "beir-cqadupstack-android"])
def test_what_is_missing_is_said(task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="ir/beir/") as caught:
        registry.get(task).bind(None)
    assert ("mteb/" in caught.value.message) == (task != "beir-robust04")


def task_file(path: Path, data: dict[str, Any], **options: Any) -> str:
    written = {
        "task": "beir-toy",
        "version": 1,
        "title": "Toy",
        "family": "retrieval",
        "type": "retrieval",
        "data": [data],
        "options": options,
        "metrics": [{"name": "nDCG@10", "column": "nDCG@10", "headline": True}],
    }
    (path / "task.yaml").write_text(yaml.safe_dump(written))
    return str(path / "task.yaml")


def content(path: Path, data: dict[str, Any], **options: Any) -> str:
    bound: Any = registry.get(task_file(path, data, **options)).bind(None)
    return str(bound.collection.content_hash)


def test_folder_archive_and_hub_give_one_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    plain = folder(tmp_path / "toy")
    expected = content(tmp_path, {"path": str(plain)})
    archive = shutil.make_archive(str(tmp_path / "toy"), "zip", plain.parent, plain.name)
    assert [content(tmp_path, {"path": archive}) for _ in range(2)] == [expected, expected]
    repository = hub_folder(tmp_path / "0123abc")
    monkeypatch.setattr(sources, "fetch_snapshot", lambda *args, **kwargs: repository)
    bound: Any = registry.get(task_file(tmp_path, {"hf": "org/toy"}, judgements=str(repository))).bind(None)
    assert (bound.collection.content_hash, bound.collection.source.split()[0]) == (expected, "hf:org/toy@0123abc")


def test_what_is_no_collection_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.zip").write_text("no archive")
    with pytest.raises(InputError, match="zip"):
        content(tmp_path, {"path": str(tmp_path / "broken.zip")})
    (tmp_path / "empty").mkdir()
    empty = shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path / "empty")
    with pytest.raises(InputError, match=r"0 files corpus\.jsonl"):
        content(tmp_path, {"path": empty})
    with pytest.raises(InputError, match="no option split"):
        content(tmp_path, {"path": str(folder(tmp_path / "toy"))}, split="test")


class First:
    """A retriever that ranks documents in the order of their ids."""

    def retrieve(self, collection: Any, depth: int) -> Any:
        from sparsebench.retrieval.run import Run
        from sparsebench.systems.retrieval import Retrieved

        ranked = {doc: float(-place) for place, doc in enumerate(collection.doc_ids[:depth])}
        return Retrieved(Run.from_dict({query: ranked for query in collection.query_ids}, collection.doc_ids), {}, {})


def test_rankings_go_as_deep_as_the_metrics_look(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    ids = [f"{number:04d}" for number in range(2000)]
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "{doc}", "text": "x"}}\n' for doc in ids))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
    (tmp_path / "qrels/test.tsv").write_text("".join(f"q\t{doc}\t1\n" for doc in ids))

    def bound(*metrics: str) -> Any:
        path = task_file(tmp_path, {"path": str(tmp_path)})
        changed = yaml.safe_load(Path(path).read_text())
        changed["metrics"] = [{"name": m, "column": m, "headline": m == metrics[0]} for m in metrics]
        Path(path).write_text(yaml.safe_dump(changed))
        return registry.get(path).bind(None)

    deep = bound("Recall@1500", "MAP", "P@100000000000")
    assert deep.depth == 2000
    values = deep.evaluate(First()).samples
    assert values["Recall@1500"].tolist() == [0.75]
    assert values["MAP"].tolist() == [0.5]  # of the first 1,000, whatever the other metrics ask for
    assert deep.spec.data != deep.collection.content_hash

    usual = bound("MAP", "Recall@1000")
    assert usual.depth == 1000
    assert usual.evaluate(First()).samples["MAP"].tolist() == [0.5]
    assert usual.spec.data == usual.collection.content_hash
    with pytest.raises(InputError, match="unknown metric"):
        bound("nDGC@10")
