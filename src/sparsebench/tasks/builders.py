"""From raw data to the rows of a task: one function for each form that data comes in."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from sparsebench.data.made import kept
from sparsebench.data.sources import Resolved, resolve
from sparsebench.errors import InputError, SparseBenchError, UnknownNameError
from sparsebench.identity import seed_of
from sparsebench.tasks import questions, texts

Row = dict[str, Any]


@dataclass(frozen=True)
class BuiltRows:
    """Rows of a task, and where they come from.

    Attributes:
        rows: One mapping a sample.
        source: The alternative that was there.
        sha256: Of the raw data.
    """

    rows: list[Row]
    source: str
    sha256: str


def build_rows(
    name: str, data: Sequence[dict[str, Any]], options: dict[str, Any], tokenizer: Any, seed: int = 0
) -> BuiltRows:
    """The rows that the builder `name` makes of the first data source that is there.

    Args:
        name: Builder; `` for the rows as they are.
        data: Alternatives, as `data.sources.resolve` takes them; none for generated data.
        options: The builder's options.
        tokenizer: For builders whose rows have an exact length in tokens.
        seed: Added to the option `seed` of builders that draw.

    Raises:
        UnknownNameError: No such builder.
        MissingError: No source is there.
        InputError: The data has not the form that the builder reads, or it has no such option.
    """
    if name not in BUILDERS:
        raise UnknownNameError("builder", name, BUILDERS)
    if seed and name in DRAWING and isinstance(options.get("seed", 0), int):
        options = {**options, "seed": options.get("seed", 0) + seed}
    resolved = resolve(data) if data else None
    try:
        rows = BUILDERS[name](resolved, tokenizer, **options)
    except SparseBenchError:
        raise
    except TypeError as error:
        raise InputError(f"builder {name or 'rows'!r}: {error}") from error
    except (KeyError, IndexError, ValueError) as error:
        source = resolved.source if resolved else "generated data"
        raise InputError(f"builder {name or 'rows'!r}: {source} has another form: {error!r}") from error
    if resolved is None:
        return BuiltRows(
            rows, f"generated:{name}", hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        )
    return BuiltRows(rows, resolved.source, resolved.sha256)


def _needed(resolved: Resolved | None) -> Resolved:
    if resolved is None:
        raise InputError("this builder reads data", "give `data:` in the task")
    return resolved


def plain(resolved: Resolved | None, tokenizer: Any, **read: Any) -> list[Row]:
    """Rows as they are; `key` and `columns` as `data.reading.read_rows` takes them."""
    return _needed(resolved).rows(**read)


def facts(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """Embedded facts as completion prompts behind the relation's examples."""
    return [
        {
            **row,
            "prompt": f"{row['shots']}\n{row['question']}",
            "target": row["answer"],
            "aliases": [row["answer"], *row["aliases"]],
        }
        for row in _needed(resolved).rows()
    ]


def whole_text(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """A text file as one document, or rows with `text` as documents that are joined without anything between."""
    from sparsebench.data.reading import read_text

    found = _needed(resolved)
    texts = [read_text(p) for p in found.paths if p.name.partition(".")[2].startswith("txt")]
    return [{"text": "".join(texts or [str(row["text"]) for row in found.rows()])}]


def wanda_text(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """A text as the released code of Wanda joins WikiText's rows: its lines, with two line feeds between them.

    Each line keeps its own end, so that there are three; of a blank line nothing is left.
    """
    from sparsebench.data.reading import read_text

    found = _needed(resolved)
    texts = [read_text(p) for p in found.paths if p.name.partition(".")[2].startswith("txt")]
    rows = re.findall(r"[^\n]*\n|[^\n]+$", "".join(texts)) if texts else [str(row["text"]) for row in found.rows()]
    return [{"text": "\n\n".join(row if row.strip() else "" for row in rows)}]


def held_out(name: str) -> bool:
    """Half of all names, by hash: what is learnt on one half is used on the other."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def wikidata_questions(resolved: Resolved | None, tokenizer: Any, shots: int = 5, seed: int = 0) -> list[Row]:
    """BIG-bench's qa_wikidata as few-shot completions, with the answer prior of each template.

    A question is a template ("The country of citizenship of") and an entity. An item is `prior` where its answer is the
    template's commonest answer, counted on the other half of the items only. Targets are strings or lists of strings.
    The examples in front are the same for all questions and are not asked.
    """
    items: list[Row] = []
    for number, example in enumerate(_needed(resolved).rows(key="examples")):
        target = example["target"]
        answers = [str(a) for a in target] if isinstance(target, list) else [str(target)]
        items.append({"id": str(number), "question": str(example["input"]), "aliases": answers, "target": answers[0]})
    templates = _templates([item["question"] for item in items])
    commonest = _commonest(items, templates)
    order = np.random.default_rng(seed_of("wikidata shots", seed)).permutation(len(items))
    examples = [items[i] for i in order[:shots]]
    lead = "".join(f"{e['question']} {e['target']}.\n" for e in examples)
    asked = {e["id"] for e in examples}
    rows = []
    for item, template in zip(items, templates, strict=True):
        if item["id"] not in asked:
            usual = commonest[not held_out(item["id"])].get(template)
            rows.append(
                {**item, "template": template, "prompt": lead + item["question"], "prior": usual in item["aliases"]}
            )
    return rows


def _templates(questions: list[str], least: int = 25) -> list[str]:
    """For each question the longest beginning up to a preposition that at least `least` questions share."""
    beginnings = [[q[: m.end()] for m in re.finditer(r" (?:of|in|by|for|to|on|at|with)\b", q)] for q in questions]
    counts = Counter(b for each in beginnings for b in set(each))
    return [next((b for b in reversed(each) if counts[b] >= least), "other") for each in beginnings]


def _commonest(items: list[Row], templates: list[str]) -> dict[bool, dict[str, str]]:
    """The commonest first answer of each template, counted on each half by itself."""
    counts: dict[bool, dict[str, Counter[str]]] = {True: defaultdict(Counter), False: defaultdict(Counter)}
    for item, template in zip(items, templates, strict=True):
        counts[held_out(item["id"])][template].update(item["aliases"])
    return {half: {t: min(c, key=lambda a: (-c[a], a)) for t, c in by.items()} for half, by in counts.items()}


def question_choices(resolved: Resolved | None, tokenizer: Any) -> list[Row]:
    """Rows with `query`, `choices` and `gold`, asked as `query`, a line feed and `Answer:`."""
    return [
        {
            "id": str(number),
            "prompt": f"{row['query'].rstrip()}\nAnswer:",
            "choices": [str(c) for c in row["choices"]],
            "gold": int(row["gold"]),
            "target": str(row["choices"][int(row["gold"])]),
        }
        for number, row in enumerate(_needed(resolved).rows())
    ]


LETTERS = "ABCD"


def mmlu(resolved: Resolved | None, tokenizer: Any, subjects: list[str] | None = None, shots: int = 5) -> list[Row]:
    """MMLU from its csv files: `shots` questions of the subject's dev file in front, letters as choices.

    Args:
        resolved: `<subject>_test.csv` and `<subject>_dev.csv` for every subject, in one folder.
        tokenizer: Unused.
        subjects: Subjects to ask; None for all that are there.
        shots: Examples in front of each question, at most 5.
    """
    from sparsebench.data.reading import read_rows

    by_name = {path.name: path for path in _needed(resolved).paths}
    found = sorted(name.removesuffix("_test.csv") for name in by_name if name.endswith("_test.csv"))
    for subject in subjects or []:
        if subject not in found:
            raise UnknownNameError("MMLU subject", subject, found)
    columns = ["question", *LETTERS, "answer"]
    rows: list[Row] = []
    for subject in subjects or found:
        title = subject.replace("_", " ")
        lead = f"The following are multiple choice questions (with answers) about {title}.\n\n"
        for row in read_rows(by_name[f"{subject}_dev.csv"], columns=columns)[:shots]:
            lead += f"{_mmlu_question(row)} {row['answer']}\n\n"
        for number, row in enumerate(read_rows(by_name[f"{subject}_test.csv"], columns=columns)):
            rows.append(
                {
                    "id": f"{subject}-{number}",
                    "subject": subject,
                    "prompt": lead + _mmlu_question(row),
                    "choices": list(LETTERS),
                    "gold": LETTERS.index(str(row["answer"]).strip()),
                    "target": str(row["answer"]).strip(),
                }
            )
    return rows


def _mmlu_question(row: Row) -> str:
    options = "".join(f"{letter}. {row[letter]}\n" for letter in LETTERS)
    return f"{str(row['question']).strip()}\n{options}Answer:"


def generated(module: str) -> Callable[..., list[Row]]:
    """A builder of samples of exact length; options as `rows` of that embedded module takes them."""

    def build(resolved: Resolved | None, tokenizer: Any, **options: Any) -> list[Row]:
        rows: Callable[..., list[Row]] = import_module(f"sparsebench.data.embedded.{module}").rows
        return kept(module, options, tokenizer, lambda: rows(tokenizer.encode, **options))

    return build


def real_passages(resolved: Resolved | None, tokenizer: Any, **options: Any) -> list[Row]:
    """Questions on real passages, each among others; options as `data.real_passages.rows` takes them."""
    from sparsebench.data import real_passages

    return real_passages.rows(_needed(resolved).rows(), tokenizer.encode, **options)


def prose(resolved: Resolved | None, tokenizer: Any, split: str = "evaluation") -> list[Row]:
    """Embedded prose, the documents of one split."""
    return [row for row in _needed(resolved).rows() if row["split"] == split]


BUILDERS: dict[str, Callable[..., list[Row]]] = {
    "": plain,
    "facts": facts,
    "qa-wikidata": wikidata_questions,
    "qa-wikidata-open-book": questions.open_book,
    "question-choices": question_choices,
    "few-shot": questions.few_shot,
    "endings": questions.endings,
    "summaries": questions.summaries,
    "mmlu": mmlu,
    "needles": generated("needles"),
    "two-questions": generated("two_questions"),
    "tracking": generated("tracking"),
    "counted-words": generated("counted_words"),
    "joint-recall": generated("joint_recall"),
    "passkey": generated("passkey"),
    "stories": generated("stories"),
    "passages": generated("passages"),
    "real-passages": real_passages,
    "prose": prose,
    "whole-text": whole_text,
    "wanda-text": wanda_text,
    "half": texts.half,
    "openings": texts.openings,
}
DRAWING = frozenset(
    {"qa-wikidata", "qa-wikidata-open-book", "few-shot", "needles", "two-questions", "tracking", "counted-words"}
    | {"joint-recall", "passkey", "stories", "passages", "real-passages"}
)
"""Builders that draw, with an option `seed`."""
