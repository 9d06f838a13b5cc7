"""Tasks: scorers by hand, prompts in a sandbox, windows token by token, phases."""

from __future__ import annotations

import json
import math

import models
import numpy as np
import pytest
import torch
import yaml

from sparsebench import adapters
from sparsebench.adapters import attached
from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.tasks import registry
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.prompts import even_choice, rendered
from sparsebench.tasks.scorers import CHOICE, TEXT, choice, contains_answers, short_answer

METRIC = {"name": "accuracy", "column": "correct", "headline": True}
BASE = {"task": "t", "version": 1, "title": "t", "family": "knowledge", "type": "generate", "scorer": "short-answer"}


def definition(**changes):
    return TaskDefinition.model_validate({**BASE, "metrics": [METRIC], **changes})


@pytest.fixture
def task(tmp_path):
    """A task of a definition over rows."""

    def make(rows, **changes):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole = {**BASE, "metrics": [METRIC], "data": [{"path": str(tmp_path / "rows.jsonl")}], **changes}
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(whole))
        return registry.get(str(tmp_path / "t.yaml"))

    return make


@pytest.fixture(scope="module")
def story():
    return models.stories_system(batch_tokens=256)


# Scorers


@pytest.mark.parametrize(
    ("response", "aliases", "correct"),
    [
        ("Paris", ["Paris"], 1), (" paris.\nThe", ["Paris"], 1), ("Paris is big", ["Paris"], 1), ("The Paris", ["Paris"], 1),
        ("Parisian", ["Paris"], 0), ("London, not Paris", ["Paris"], 0), ("", ["Paris"], 0), ("...", ["Paris"], 0),
        ("U.S.A.", ["USA", "United States"], 0), ("United States", ["USA", "United States"], 1),
        ("Zurich", ["Zürich"], 1), ("p", "Paris", 0), ("Paris", "Paris", 1), ("a", "abc", 0),
    ],
)  # fmt: skip
def test_short_answers(response, aliases, correct):
    assert short_answer({"aliases": aliases, "target": "x"}, response)["correct"] == correct


def test_an_answer_prior_splits_the_items():
    def nan(value):
        return None if math.isnan(value) else value

    for prior, wanted in ((True, (None, 1.0)), (False, (1.0, None)), (None, (None, None))):
        row = {"target": "Paris"} | ({} if prior is None else {"prior": prior})
        scores = short_answer(row, "Paris")
        assert (nan(scores["correct_non_prior"]), nan(scores["correct_prior"])) == wanted


@pytest.mark.parametrize("response", ["", " ", "\n\n", "...", "?!"])
def test_a_collapsed_model_that_answers_nothing_scores_nothing(response):
    assert short_answer({"target": "Paris"}, response) | {"correct_non_prior": 0, "correct_prior": 0} == {
        "correct": 0.0, "empty": 1.0, "correct_non_prior": 0, "correct_prior": 0,
    }  # fmt: skip
    assert contains_answers({"answers": ["12", "34"]}, response) == {"recall": 0.0, "complete": 0.0}


@pytest.mark.parametrize(
    ("answers", "response", "recall"),
    [
        (["12345"], "It is 12345.", 1), (["12345"], "It is 123456.", 0), (["12345"], "1 2 3 4 5", 0),
        (["11", "22"], "22 and 33", 0.5), (["New York"], "in New York now", 1), ("12345", "1 2 3", 0), ("12345", "12345", 1),
        ([5], "five or 5", 1),
    ],
)  # fmt: skip
def test_named_answers(answers, response, recall):
    assert contains_answers({"answers": answers}, response) == {"recall": recall, "complete": float(recall == 1)}


def test_choices_by_hand():
    row = {"gold": 1, "choices": ["a", "bb", "cccc"], "prior": False}
    scores = choice(row, [math.log(0.2), math.log(0.5), math.log(0.3)])
    assert scores["correct"] == scores["correct_non_prior"] == 1.0
    assert scores["gold_logprob"] == pytest.approx(math.log(0.5))
    # -3/1, -4/2, -5/4: the longest is the best for each character
    scores = choice(row, [-3.0, -4.0, -5.0])
    assert (scores["correct"], scores["correct_norm"]) == (0.0, 0.0)
    assert choice({**row, "gold": 2}, [-3.0, -4.0, -5.0])["correct_norm"] == 1.0
    # A model that says the same of all is right by no accident.
    assert choice(row, [-1.0, -1.0, -1.0])["correct"] == 0.0
    assert choice(row, [-1e5, -1e5, -1e5])["gold_logprob"] == pytest.approx(-math.log(3))


# Definitions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": ""}, "names its scorer"),
        ({"metrics": [{"name": "accuracy", "column": "correct"}]}, "no metric is the headline"),
        ({"metrics": [METRIC, METRIC]}, "two metrics have one name"),
        ({"metrics": []}, "at least 1"),
        ({"type": "perplexity", "window": 8, "score_from": 8}, "leaves nothing"),
        ({"generation": {"max_gen_tokens": 3}}, "generation.max_gen_tokens: no such key"),
        ({"generation": {"max_gen_toks": 0}}, "greater than"),
        ({"family": "facts"}, "family"),
        ({"task": "Not A Name"}, "task"),
        ({"versoin": 1}, "no such key"),
    ],
)
def test_wrong_definitions_name_file_and_key(task, changes, message):
    with pytest.raises(InputError) as caught:
        task([], **changes)
    assert message in caught.value.message
    assert caught.value.message.partition(":")[0].endswith("t.yaml")


@pytest.mark.parametrize(
    ("said", "transform", "higher"),
    [
        ({"column": "nll"}, "exp", False),
        ({"column": "nll", "transform": "identity"}, "identity", False),
        ({"column": "kl"}, "identity", False),
        ({"column": "token_ms"}, "identity", False),
        ({"column": "correct"}, "identity", True),
        ({"column": "correct", "higher_is_better": False}, "identity", False),
    ],
)
def test_a_loss_is_better_lower_unless_its_definition_says_otherwise(said, transform, higher):
    [metric] = definition(metrics=[{"name": "m", "headline": True, **said}]).metrics
    assert (metric.transform, metric.higher_is_better) == (transform, higher)


def test_what_a_metric_says_by_default_is_no_other_definition():
    short, full = {"name": "m", "column": "nll", "headline": True}, {"transform": "exp", "higher_is_better": False}
    assert definition(metrics=[short]).definition_hash == definition(metrics=[{**short, **full}]).definition_hash


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "a"}], {}, "'target' is undefined"),
        ([{"prompt": "a", "target": "b"}], {"scorer": "short-answr"}, "unknown scorer of generated text 'short-answr'"),
        ([{"prompt": "a", "target": "b"}], {"scorer": "choice"}, "unknown scorer of a generate task 'choice'"),
        ([{"prompt": "a", "target": "b"}], {"metrics": [{**METRIC, "column": "corect"}]}, "'corect'"),
        ([{"prompt": "a", "target": "b"}], {"scorer": "contains-answers"}, "'answers'"),
        ([{"prompt": "a", "target": "b", "answers": []}], {"scorer": "contains-answers"}, "cannot read it"),
        ([{"prompt": "a", "target": "b"}], {"type": "choice", "scorer": "choice"}, "'choices'"),
        ([{"prompt": "a", "target": "b", "choices": ["b", "c"], "gold": 2}], {"type": "choice", "scorer": "choice"}, "gold"),
        ([{"prompt": "a", "target": "b", "choices": ["b", "c"], "gold": -1}], {"type": "choice", "scorer": "choice"}, "gold"),
        ([{"prompt": "a", "target": "b", "choices": ["b", "c"], "gold": "A"}], {"type": "choice", "scorer": "choice"}, "'A'"),
        ([{"prompt": "a", "target": "b", "id": "x"}] * 2, {}, "'x' stands twice"),
        ([], {}, "holds no rows"),
        ([{"prompt": "a", "target": "b"}], {"build": "nothing"}, "unknown builder 'nothing'"),
        ([{"prompt": "a", "target": "b"}], {"options": {"colour": 1}}, "colour"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused_before_a_model_is_loaded(task, rows, changes, message):
    with pytest.raises(InputError) as caught:
        task(rows, **changes).bind(None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"choices": "abc", "gold": 0}, "`choices` is 'abc'"),
        ({"choices": {"x": 1, "y": 2}, "gold": 0}, "`choices` is {'x': 1, 'y': 2}"),
        ({"choices": ["x"], "gold": 0}, "`choices` is ['x']"),
        ({"choices": ["x", None], "gold": 0}, "None is no answer"),
        ({"choices": ["x", "y"], "gold": 1.9}, "`gold` is 1.9, of 2 choices"),
        ({"choices": ["x", "y"], "gold": True}, "`gold` is True"),
    ],
)
def test_choices_that_are_not_meant_so_are_refused(task, fields, said):
    with pytest.raises(InputError) as caught:
        task([{"prompt": "a", "target": "b", **fields}], type="choice", scorer="choice").bind(None)
    assert "sample '0'" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("aliases", [{"Paris": 1}, ["Paris", None], [["Paris"]]])
def test_answers_that_are_no_texts_are_refused(task, aliases):
    with pytest.raises(InputError, match=r"sample '0': .*is no answer"):
        task([{"prompt": "a", "target": "Paris", "aliases": aliases}]).bind(None)
    assert short_answer({"aliases": ["Paris", 12]}, "12")["correct"] == 1
    assert short_answer({"target": 12}, "12")["correct"] == 1


def test_a_gold_may_be_a_whole_number_in_another_form(task):
    rows = [{"prompt": "a", "target": "b", "choices": ["x", 2], "gold": gold} for gold in (1, "1", 1.0)]
    assert len(task(rows, type="choice", scorer="choice").bind(None).rows) == 3


def test_the_definitions_of_the_package():
    found = registry.definitions()
    assert len({d.definition_hash for d in found}) == len(found)
    assert [d.task for d in found] == [name for name in registry.names() if name in {d.task for d in found}]


def test_unknown_tasks():
    with pytest.raises(UnknownNameError) as caught:
        registry.get("prose-perplexty")
    assert caught.value.nearest[0] == "prose-perplexity"
    with pytest.raises(InputError, match="cannot read"):
        registry.get("/no/such/task.yaml")


# Prompts


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}", "{{ prompt.__init__.__globals__ }}", "{{ x.append(1) }}", "{{ nothing }}", "{% if %}",
        "{{ 1 / 0 }}", "{{ range(10**9) | list }}", "{{ x['a'] }}", "{{ '{0.__class__}'.format(x) }}", "{% include 'a' %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}", "{{ self.__init__ }}",
    ],
)  # fmt: skip
def test_templates_are_rendered_in_a_sandbox(template):
    with pytest.raises(InputError, match="task t: template"):
        rendered(definition(template={"prompt": template}), [{"prompt": "a", "target": "b", "x": []}])


def test_a_null_and_a_field_that_is_missing_are_named_with_their_row():
    rows = [{"prompt": "a", "target": "b"}, {"prompt": None, "target": "b"}]
    with pytest.raises(InputError, match="null where a text is wanted") as caught:
        rendered(definition(), rows)
    assert caught.value.hint == "row 1 has prompt, target"
    with pytest.raises(InputError, match="'query' is undefined") as caught:
        rendered(definition(template={"prompt": "{{ query }}"}), rows)
    assert caught.value.hint == "row 0 has prompt, target"


def test_a_choice_needs_no_target_of_its_own():
    (row,) = rendered(definition(), [{"prompt": "a", "choices": ["x", "y"], "gold": 1}])
    assert row["target"] == "y"


def test_templates_by_hand():
    template = {"prompt": "Q: {{ q }}\n", "target": "{{ a[0] }}", "cluster": "{{ kind }}", "id": "{{ kind }}-{{ n }}"}
    rows = [{"q": "<b>&", "a": ["x"], "kind": "k", "n": n, "self": 1, "request": 2} for n in (1, 2)]
    found = rendered(definition(template=template), rows)
    assert [r["sample"] for r in found] == ["k-1", "k-2"]
    assert (found[0]["prompt"], found[0]["target"], found[0]["cluster"]) == ("Q: <b>&\n", "x", "k")
    assert [r["cluster"] for r in rendered(definition(), [{"prompt": "a", "target": "b"}] * 2)] == ["0", "1"]


class Watched(dict):
    """A row that knows which of its fields were asked for."""

    def __init__(self, row):
        super().__init__(row)
        self.asked = set()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("scorer", [*TEXT, *CHOICE])
def test_every_field_that_a_scorer_reads_is_hashed(task, scorer):
    row = {
        **{"id": "1", "prompt": "p", "target": "#### 1", "answers": ["1"], "story": "A b. C d.", "turn": "first"},
        **{"aliases": ["a"], "choices": ["x", "y"], "gold": 0, "prior": False},
    }
    other = {
        **{"target": "#### 2", "answers": ["2"], "story": "E f.", "turn": "second"},
        **{"aliases": ["b"], "choices": ["x", "z"], "gold": 1, "prior": True},
    }
    watched = Watched(row)
    if scorer in TEXT:
        TEXT[scorer](watched, "1 2 3")
    else:
        CHOICE[scorer](watched, [0.0, -1.0])
    column = "correct" if scorer in ("short-answer", "final-number", "choice") else "empty"
    column = "recall" if scorer in ("contains-answers", "two-turns") else column
    changes = {
        "type": "choice" if scorer in CHOICE else "generate",
        "scorer": scorer,
        "metrics": [{**METRIC, "column": column}],
    }
    before = task([row], **changes).bind(None).spec.data
    for name in watched.asked:
        assert task([{**row, name: other[name]}], **changes).bind(None).spec.data != before, name


def test_a_story_that_is_the_context_is_hashed_once(task):
    changes = {
        "scorer": "summary",
        "metrics": [{**METRIC, "column": "supported"}],
        "template": {"context": "{{ text }}"},
    }
    rows = [{"id": "1", "prompt": "A b. C", "text": text, "story": story, "target": ""} for text, story in STORIES]
    hashes = [task([row], **changes).bind(None).spec.data for row in rows]
    assert len(set(hashes)) == len(hashes)


STORIES = [("A b. C", "A b. C"), ("A b. C", "C"), ("C", "C"), ("A b. C", "")]
"""Contexts and stories."""


def test_fewer_rows_are_spread_evenly():
    assert even_choice(list(range(10)), 3) == [0, 3, 6]
    assert even_choice([1, 2], 5) == even_choice([1, 2], None) == [1, 2]
    assert len(set(even_choice(list(range(97)), 31))) == 31
    for seed in range(1, 50):
        chosen = even_choice(list(range(97)), 31, seed)
        assert len(set(chosen)) == 31
        assert chosen == sorted(chosen)
    assert len({tuple(even_choice(list(range(97)), 31, seed)) for seed in range(50)}) > 1


def test_generation_and_choice_on_a_trained_model(task, story):
    rows = [
        {"id": "a", "prompt": "Once upon a time, there was a little girl named", "target": "Lily", "choices": ["Lily", "zzz"],
         "gold": 0},
        {"id": "b", "prompt": "Once upon a time, there was a little girl named", "target": "zzz", "choices": ["zzz", "Lily"],
         "gold": 0},
    ]  # fmt: skip
    result = task(rows, generation={"until": ["."], "max_gen_toks": 5}).bind(story.tokenizer).evaluate(story)
    assert result.samples["correct"].tolist() == [1.0, 0.0]
    assert result.samples["response"].str.startswith("Lily").all()
    result = task(rows, type="choice", scorer="choice").bind(story.tokenizer).evaluate(story)
    assert result.samples["correct"].tolist() == [1.0, 0.0]
    assert result.facts == {}


def test_prompts_longer_than_the_model_are_cut_from_the_left_and_counted(task, story):
    rows = [{"id": str(n), "prompt": "the " * n + "Once upon a", "target": "time"} for n in (3, 900)]
    result = task(rows).bind(story.tokenizer).evaluate(story)
    assert result.facts == {"truncated": 1}
    again = task(rows[:1]).bind(story.tokenizer).evaluate(story)
    assert again.facts == {}


def test_tasks_of_a_length_that_the_model_does_not_read_are_refused(story, tmp_path):
    bound = registry.get("needle-1024").bind(story.tokenizer, 2)
    with pytest.raises(InputError, match=r"needle-1024 is made of 1,024 tokens, of which .* reads 512"):
        bound.evaluate(story)
    learned = models.tiny_system("gpt2")
    metric = {"name": "perplexity", "column": "nll", "headline": True, "transform": "exp", "higher_is_better": False}
    data = {"build": "whole-text", "data": [{"path": str(tmp_path / "text.txt")}], "metrics": [metric], "scorer": ""}
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 400)
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**BASE, "task": "t", "type": "perplexity", "window": 600, **data}))
    bound = registry.get(str(tmp_path / "t.yaml")).bind(learned.tokenizer, 2)
    with pytest.raises(InputError, match="a window of task t has 599 tokens, and GPT2LMHeadModel has positions for"):
        bound.evaluate(learned)


# Perplexity


def test_windows_are_exact(tmp_path, story):
    text = "".join(models.STORIES)
    (tmp_path / "text.txt").write_text(text)
    whole = {
        **BASE, "type": "perplexity", "build": "whole-text", "data": [{"path": str(tmp_path / "text.txt")}], "window": 40,
        "score_from": 7, "scorer": "", "metrics": [{"name": "perplexity", "column": "nll", "transform": "exp", "headline": True}],
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(whole))
    bound = registry.get(str(tmp_path / "t.yaml")).bind(story.tokenizer)
    result = bound.evaluate(story)
    tokens = story.tokenizer.encode(text, add_special_tokens=False)
    losses = []
    for start in range(0, len(tokens) - 39, 40):
        ids = torch.tensor([tokens[start : start + 40]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(story.model(ids).logits[0], dim=-1)
        losses.append([-float(logprobs[i - 1, ids[0, i]]) for i in range(7, 40)])
    assert len(losses) == len(tokens) // 40 > 3
    np.testing.assert_allclose(result.samples["nll"], [sum(loss) for loss in losses], rtol=1e-5)
    assert set(result.samples["nll.weight"]) == {33.0}
    assert bound.metrics[0].value(result.samples) == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert result.facts["tokens_scored"] == 33 * len(losses)
    fewer = registry.get(str(tmp_path / "t.yaml")).bind(story.tokenizer, 2)
    assert len(fewer.evaluate(story).samples) == 2
    assert fewer.spec.data != bound.spec.data

    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**whole, "window": 600}))
    (tmp_path / "text.txt").write_text(text * 4)
    assert (
        registry.get(str(tmp_path / "t.yaml")).bind(story.tokenizer, 1).evaluate(story).facts["beyond_positions"] == 512
    )
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(InputError, match="make no window of 600"):
        registry.get(str(tmp_path / "t.yaml")).bind(story.tokenizer)


# Phases: which tokens run as decode under a method that acts there


def counted(system, bound, *members):
    system.counters.reset()
    with attached(system, list(members)):
        bound.evaluate(system)
    return {name: int(value) for name, value in system.counters.sums.items() if name.endswith((".tokens", ".scored"))}


def test_the_context_ends_prefill_for_methods_that_act_in_decode(task, story):
    context, question = "Lily had a red ball and a blue car in her room. ", "What did Lily have?"
    rows = [{"id": "a", "context": context, "question": question, "target": "ball"}]
    template = {"prompt": "{{ context }}{{ question }}", "context": "{{ context }}"}
    generation = {"until": [], "max_gen_toks": 4, "ignore_eos": True}
    with_context = task(rows, template=template, generation=generation).bind(story.tokenizer)
    assert with_context.protocol == "context"
    prompt = len(story.tokenizer.encode(context + question))
    before = len(story.tokenizer.encode(context))
    shared = (
        before - 1
        if story.tokenizer.encode(context)[-1] != story.tokenizer.encode(context + question)[before - 1]
        else before
    )
    answer = 3  # the fourth token is chosen, and never fed
    decode, prefill = adapters.create("quest", tokens=16), adapters.create("magnitude", sparsity=0.1)
    assert counted(story, with_context) == {
        "prefill.tokens": prompt, "prefill.scored": 1, "decode.tokens": answer, "decode.scored": answer,
    }  # fmt: skip
    assert counted(story, with_context, prefill)["prefill.tokens"] == prompt
    assert counted(story, with_context, decode) == {
        "prefill.tokens": shared, "decode.tokens": prompt - shared + answer, "decode.scored": 1 + answer,
    }  # fmt: skip
    without = task(rows, template={"prompt": "{{ context }}{{ question }}"}, generation=generation).bind(
        story.tokenizer
    )
    assert without.protocol == "prompt"
    # Without a context, the last token of the prompt is the first decode query.
    assert counted(story, without, decode) == {
        "prefill.tokens": prompt - 1, "decode.tokens": 1 + answer, "decode.scored": 1 + answer,
    }  # fmt: skip


def test_continuations_are_decoded_query_by_query(task, story):
    rows = [
        {
            "id": "a",
            "prompt": "Once upon a time there was a",
            "choices": ["girl", "small dog"],
            "gold": 0,
            "target": "girl",
        }
    ]
    bound = task(rows, type="choice", scorer="choice").bind(story.tokenizer)
    encode = story.tokenizer.encode
    lengths = [len(encode(rows[0]["prompt"] + " " + c)) for c in rows[0]["choices"]]
    prompt = len(encode(rows[0]["prompt"]))
    found = counted(story, bound, adapters.create("quest", tokens=16))
    assert found == {
        "prefill.tokens": 2 * (prompt - 1),  # too short a beginning to be worth sharing
        "decode.tokens": sum(length - prompt for length in lengths),  # the last token is never fed
        "decode.scored": sum(length - prompt for length in lengths),
    }


def test_perplexity_is_prefill_unless_the_task_says_otherwise(tmp_path, story):
    (tmp_path / "text.txt").write_text("".join(models.STORIES))
    found = {}
    for decode in (False, True):
        whole = {
            **BASE, "type": "perplexity", "build": "whole-text", "data": [{"path": str(tmp_path / "text.txt")}], "window": 40,
            "score_from": 30, "windows": 2, "scorer": "", "decode": decode,
            "metrics": [{"name": "perplexity", "column": "nll", "transform": "exp", "headline": True}],
        }  # fmt: skip
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(whole))
        bound = registry.get(str(tmp_path / "t.yaml")).bind(story.tokenizer)
        found[decode] = [counted(story, bound, *m) for m in ((), (adapters.create("quest", tokens=16),))]
    whole = {"prefill.tokens": 2 * 39, "prefill.scored": 2 * 10}
    assert found[False] == [whole, whole]
    assert found[True] == [whole, {"prefill.tokens": 2 * 29, "decode.tokens": 2 * 10, "decode.scored": 2 * 10}]


def test_missing_data_says_what_was_tried(task, monkeypatch):
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    both = [{"local": "nowhere/a.jsonl"}, {"path": "/nowhere/b.jsonl"}]
    with pytest.raises(MissingError) as caught:
        task([], data=both).bind(None)
    for tried in ("nowhere/a.jsonl", "SPARSEBENCH_DATA is not set", "/nowhere/b.jsonl"):
        assert tried in str(caught.value)


# Tasks that are made for a length


def test_any_length_is_a_task_of_its_own():
    listed, other = registry.get("needle-1024").definition, registry.get("needle-3000").definition
    assert (listed.task, listed.options["length"]) == ("needle-1024", 1024)
    assert (other.task, other.options["length"], other.title) == (
        "needle-3000",
        3000,
        "A number in prose, 3,000 tokens",
    )
    assert listed.definition_hash != other.definition_hash
    assert "needle-1024" in registry.names()
    assert "needle-3000" not in registry.names()
    for name in ("needle", "needle-", "needle-0", "needle-01", "needle-1e3", "prose-perplexity-512"):
        with pytest.raises(UnknownNameError):
            registry.get(name)


def test_the_list_of_lengths_is_no_part_of_a_definition():
    known = registry.get("needle-1024").definition
    assert known.model_copy(update={"lengths": [1024]}).definition_hash == known.definition_hash


def test_a_window_is_the_length_of_a_perplexity():
    definition = registry.get("long-prose-2048").definition
    assert (definition.window, definition.score_from) == (2048, 2048 - 256)


def test_scores_of_two_turns():
    from sparsebench.tasks.scorers import two_turns

    scores = two_turns({"answers": ["12345"], "turn": "second"}, "It is 12345")
    assert (scores["recall"], scores["recall_second"]) == (1.0, 1.0)
    assert math.isnan(scores["recall_first"])


def test_the_second_question_is_asked_after_prefill_ended_with_the_first(story):
    """Under a method that acts in decode, the first turn's question is in prefill, the second's is decoded."""
    bound = registry.get("two-questions-450").bind(story.tokenizer)
    first, second = (next(row for row in bound.rows if row["turn"] == turn) for turn in ("first", "second"))
    encode = story.tokenizer.encode
    decode = adapters.create("quest", tokens=16)
    bound.rows = [first]
    found = counted(story, bound, decode)
    assert found["prefill.tokens"] == min(len(encode(first["prompt"])), 512 - 64) - 1
    bound.rows = [second]
    found = counted(story, bound, decode)
    asked = len(encode(second["prompt"])) - len(encode(first["prompt"]))
    assert asked <= found["decode.tokens"] - 63 <= asked + 1
    assert first["cluster"] == second["cluster"]
