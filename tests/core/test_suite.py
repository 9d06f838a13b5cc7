from __future__ import annotations

import random
from importlib.resources import files

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import InputError, SparseBenchError, UnknownNameError
from sparsebench.suite import Suite
from sparsebench.suite_source import from_source, load_suite, names
from sparsebench.yaml_source import parse_yaml

QUICKSTART = files("sparsebench.suites").joinpath("quickstart.yaml").read_text()

VALID = """\
suite: mine
version: 1
systems:
  lm: {model: "path:/models/lm"}
  words: {kind: lexical}
calibration:
  text: {data: prose}
grids:
  - name: weights
    system: lm
    calibration: text
    tasks:
      - prose-perplexity
      - {task: facts-short, limit: 5}
    methods:
      - magnitude: 0
"""
METHODS = """\
      - dense
      - {method: dense, noise: {batch_tokens: 64}}
      - method: wanda
        knobs: {compare_group: layer}
        budgets: {sparsity: [0.1, 0.5], pattern: "2:4"}
      - method: random-weights
        budgets: {sparsity: 0.5}
        seeds: [0, 1]
      - stack:
          - {method: magnitude, budget: {sparsity: 0.5}}
          - {method: streaming-llm, budget: {tokens: 64}}
conclude:
  margins:
    facts-short: {"*": {points: 0.03}}
"""
VALID = VALID.replace("      - magnitude: 0\n", METHODS)


def read(text):
    return from_source(parse_yaml(text, "mine.yaml"))


def wrong(old, new, text=VALID):
    assert text.count(old) == 1
    with pytest.raises(InputError) as caught:
        read(text.replace(old, new))
    return caught.value


def line_of(fragment):
    return VALID[: VALID.index(fragment)].count("\n") + 1


def test_a_valid_suite():
    suite = read(VALID)
    (grid,) = suite.grids
    assert [m.labels() for m in grid.methods] == [
        ["dense"],
        ["dense"],
        ["wanda 10%", "wanda 50%", "wanda 2:4"],
        ["random-weights 50%"],
        ["magnitude 50% + streaming-llm 64 tokens"],
    ]
    assert [t.limit for t in grid.tasks] == [None, 5]
    assert suite.conclude.margin("facts-short", "accuracy").points == 0.03
    assert suite.conclude.margin("prose-perplexity", "perplexity") is None


@pytest.mark.parametrize("name", names())
def test_suites_of_the_package(name):
    assert load_suite(name).suite == name


ERRORS = [
    # what is written, what stands there instead, key, part of the message, hint
    ("version: 1", "versoin: 1", "versoin", "no such key", "did you mean 'version'?"),
    ("version: 1", "version: one", "version", "valid integer", None),
    ("words: {kind: lexical}", "words: {kind: lexcal}", "systems.words.kind", "should be", None),
    ("words: {kind: lexical}", "words: {knid: lexical}", "systems.words.knid", "no such key", "did you mean 'kind'?"),
    ("words: {kind: lexical}", "words: {kind: dense-encoder}", "systems.words", "needs a model", "hf:org/name"),
    ('lm: {model: "path:/models/lm"}', "lm: {dtype: float8, model: x}", "systems.lm.dtype", "should be", None),
    ('lm: {model: "path:/models/lm"}', "lm: {devices: 0, model: x}", "systems.lm.devices", "greater than", None),
    ("words: {kind: lexical}", "words: {kind: lexical, devices: 2}", "systems.words", "on one device", "causal-lm"),
    ("text: {data: prose}", "text: {data: porse}", "calibration.text.data", "unknown calibration text", "'prose'"),
    ("text: {data: prose}", "text: {data: prose, length: 1}", "calibration.text.length", "greater than", None),
    ("system: lm", "system: ml", "grids.0.system", "unknown system", "did you mean 'lm'?"),
    ("calibration: text", "calibration: txt", "grids.0.calibration", "unknown calibration", "did you mean 'text'?"),
    ("- prose-perplexity", "- prose-perplexty", "grids.0.tasks.0", "unknown task", "did you mean 'prose-perplexity'"),
    ("task: facts-short", "task: facts-shrot", "grids.0.tasks.1", "unknown task", "'facts-short'"),
    ("limit: 5", "limit: 0", "grids.0.tasks.1.limit", "greater than", None),
    ("      - dense\n", "      - dens\n", "grids.0.methods.0", "unknown adapter", "did you mean 'dense'"),
    ("method: wanda", "method: wnada", "grids.0.methods.2.method", "unknown adapter 'wnada'", "did you mean 'wanda'"),
    ("compare_group: layer", "compare_goup: layer", "grids.0.methods.2.knobs", "unknown knob", "'compare_group'"),
    ("compare_group: layer", "compare_group: column", "grids.0.methods.2.knobs", "compare_group='column'", None),
    ("sparsity: [0.1, 0.5]", "sparsty: [0.1]", "grids.0.methods.2.budgets.sparsty", "unknown budget", "'sparsity'"),
    ("sparsity: [0.1, 0.5]", "sparsity: [0.1, 1.5]", "grids.0.methods.2.budgets.sparsity", "below 1", None),
    ("sparsity: [0.1, 0.5]", "sparsity: []", "grids.0.methods.2", "without a value", None),
    ("sparsity: [0.1, 0.5]", "tokens: [64]", "grids.0.methods.2.budgets.tokens", "no budget 'tokens'", "it takes"),
    ('pattern: "2:4"', "pattern: 2:4", "grids.0.methods.2.budgets.pattern", "must be 'n:m'", "quote it"),
    ('        budgets: {sparsity: [0.1, 0.5], pattern: "2:4"}\n', "", "grids.0.methods.2", "needs a budget", "it takes"),
    ("seeds: [0, 1]", "seeds: []", "grids.0.methods.3.seeds", "at least 1", None),
    ("method: random-weights", "method: magnitude", "grids.0.methods.3", "depends on a seed", None),
    ("budget: {sparsity: 0.5}", "budget: {sparsity: 2}", "grids.0.methods.4.stack.0.budget.sparsity", "below 1", None),
    ("budget: {tokens: 64}", "budget: {terms: 64}", "grids.0.methods.4.stack.1.budget.terms", "no budget", "it takes"),
    ("      - stack:\n", "      - budgets: {sparsity: 0.5}\n        stack:\n", "grids.0.methods.4", "of its own", None),
    ("noise: {batch_tokens: 64}", "noise: {}", "grids.0.methods.1.noise", "another dtype or batch_tokens", None),
    ("noise: {batch_tokens: 64}", "budgets: {sparsity: 0.5}", "grids.0.methods.1", "no budgets of its own", None),
    ("      - dense\n", "      - {}\n", "grids.0.methods.0", "one of the two", None),
    ("    system: lm\n", "    system: lm\n    baseline: dnse\n", "grids.0.baseline", "unknown row", "'dense'"),
    ("seeds: [0, 1]", "baseline: wanda 11%", "grids.0.methods.3.baseline", "unknown row", "'wanda 10%'"),
    ("seeds: [0, 1]", "system: other", "grids.0.methods.3.system", "unknown system", "there are: lm, words"),
    ("facts-short: {", "facts-shrt: {", "conclude.margins.facts-shrt", "unknown task of this suite", "'facts-short'"),
    ("{points: 0.03}", "{points: 0.03, relative: 0.1}", "conclude.margins.facts-short.*", "one of the two", None),
    ("{points: 0.03}", "{points: -1}", "conclude.margins.facts-short.*.points", "greater than", None),
    ("conclude:\n", "conclude:\n  alpha: 0.7\n", "conclude.alpha", "less than", None),
    ("conclude:\n", "conclude:\n  resamples: 1000000000000000\n", "conclude.resamples", "less than", None),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "message", "hint"), ERRORS, ids=[f"{e[2]}: {e[3]}" for e in ERRORS])
def test_every_error_names_file_line_key_and_what_would_be_right(old, new, key, message, hint):
    error = wrong(old, new)
    where, _, said = error.message.partition(f": {key}: ")
    assert message in said, error.message
    assert hint is None or hint in (error.hint or ""), error
    name, _, line = where.partition(":")
    assert name == "mine.yaml"
    own = line_of(old.lstrip())
    entry = VALID.rfind("\n      - ", 0, VALID.index(old) + 1)  # of an error of a whole entry: where it begins
    assert own + new.count("\n") >= int(line) >= (VALID[: entry + 1].count("\n") + 1 if entry > 0 else own), error


@pytest.mark.parametrize("text", ["", "[]", "suite", "null", "3"])
def test_a_suite_is_a_mapping(text):
    with pytest.raises(InputError, match=r"mine.yaml:1: a suite is a mapping"):
        read(text)


def test_two_grids_of_one_name():
    data = yaml.safe_load(VALID)
    data["grids"] *= 2
    with pytest.raises(InputError, match="two grids 'weights'"):
        read(yaml.safe_dump(data))


def test_unknown_suites_and_files(tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        load_suite("quikstart")
    assert caught.value.nearest == ["quickstart"]
    with pytest.raises(InputError, match="cannot read"):
        load_suite(str(tmp_path / "none.yaml"))


def test_a_suite_made_in_python_is_checked_too():
    data = yaml.safe_load(VALID)
    data["grids"][0]["methods"][2]["method"] = "wnada"
    with pytest.raises(InputError, match="wnada"):
        Suite.model_validate(data)


def test_with_model_replaces_language_models_only():
    suite = read(VALID).with_model("path:other")
    assert (suite.systems["lm"].model, suite.systems["words"].model) == ("path:other", "")


# Whatever is written, there is a suite or an error for people.

LINES = QUICKSTART.splitlines()
words = st.sampled_from(
    ["", "-", ":", "{", "}", "[", "]", "null", "true", "0", "-1", "1.5", ".nan", "1e999", "2:4", "dense", "wanda", "quest",
     "method: wanda", "budgets:", "{sparsity: 0.5}", "knobs: {seed: 1}", "stack: [wanda]", "noise: {}", "seeds: [x]",
     "&a", "*a", "!x y", "? [1]", "'", '"', "#", "\t", "limit: -4", "grids:", "tasks: 4", "systems: []", "conclude: 3"]
)  # fmt: skip


@st.composite
def mutated(draw):
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["delete", "replace", "insert", "swap", "indent", "tail", "value"]))
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        if kind == "delete":
            del lines[place]
        elif kind == "replace":
            lines[place] = indent + draw(words)
        elif kind == "insert":
            lines.insert(place, indent + draw(words))
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == "indent":
            lines[place] = "  " + lines[place]
        elif kind == "tail":
            lines = lines[: max(place, 1)]
        else:
            lines[place] = lines[place].partition(":")[0] + ": " + draw(words)
        lines = lines or [""]
    return "\n".join(lines)


def survives(text):
    try:
        read(text)
    except SparseBenchError as error:
        assert error.message.startswith("mine.yaml:")


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_a_damaged_suite_is_an_error_for_people(text):
    survives(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_bytes_are_an_error_for_people(seed):
    draws = random.Random(seed)
    content = bytearray(QUICKSTART.encode())
    for _ in range(draws.randint(1, 8)):
        content[draws.randrange(len(content))] = draws.randrange(256)
    survives(bytes(content[: draws.choice([len(content), draws.randrange(len(content))])]).decode("latin-1"))
