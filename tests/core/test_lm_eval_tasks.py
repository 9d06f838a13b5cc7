"""lm-eval tasks from local files: the same numbers as lm-eval's own evaluation, and no code run."""

from __future__ import annotations

import json

import lm_eval
import models
import pytest
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.tasks import registry
from sparsebench.tasks.lm_eval_files import local_config

NAMES = ["Lily", "Tom", "Ben", "Sue", "Max", "Anna"]
ROWS = [
    {"question": f"Once upon a time there was a {kind} named", "choices": [name, "zzz", "the"], "answer": i % 3}
    for i, (name, kind) in enumerate(zip(NAMES, ["girl", "boy", "dog", "cat", "bird", "bear"], strict=True))
]
CHOICE = {
    "task": "stories_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "num_fewshot": 2,
    "doc_to_text": "{{ question }}",
    "doc_to_choice": "{{ choices }}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 3.0},
}
GENERATE = {
    "task": "stories_generate",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{ question }}",
    "doc_to_target": "{{ choices[0] }}",
    "generation_kwargs": {"until": [".", ","], "max_gen_toks": 8, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match"}],
}
ROLLING = {
    "task": "stories_perplexity",
    "dataset_path": "json",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{ question }}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}


@pytest.fixture(scope="module")
def story():
    return models.stories_system()


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(config, name="task.yaml"):
        data = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
        whole = {**config, "dataset_kwargs": data} if "dataset_path" in config else config
        (tmp_path / name).write_text(yaml.safe_dump(whole))
        return tmp_path / name

    return write


@pytest.mark.parametrize("config", [CHOICE, GENERATE, ROLLING], ids=lambda c: c["output_type"])
def test_the_numbers_are_lm_evals(written, story, config):
    path = written(config)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=story.model, tokenizer=story.tokenizer, batch_size=2, device="cpu"),
        tasks=[config["task"]],
        task_manager=TaskManager(include_path=str(path.parent), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    wanted = {
        name.partition(",")[0]: v for name, v in theirs["results"][config["task"]].items() if "stderr" not in name
    }
    task = registry.get(f"lm-eval:{path}")
    bound = task.bind(story.tokenizer)
    result = bound.evaluate(story)
    assert [metric.headline for metric in bound.metrics] == [True] + [False] * (len(bound.metrics) - 1)
    for metric in bound.metrics:
        assert metric.value(result.samples) == pytest.approx(wanted[metric.name], rel=1e-4), metric.name
    if config is CHOICE:
        logged = {sample["doc_id"]: sample for sample in theirs["samples"][config["task"]]}
        assert bound.spec.version == 3
        for row in result.samples.itertuples():
            assert row.acc == logged[int(row.sample)]["acc"]
            ours = [value for value, _ in json.loads(row.response)]
            assert ours == pytest.approx([float(r[0][0]) for r in logged[int(row.sample)]["resps"]], abs=1e-3)


def test_binding_twice_gives_the_same_cells_and_their_responses_stay_apart(written, story):
    name = f"lm-eval:{written(CHOICE)}"
    first, second, fewer = (registry.get(name).bind(story.tokenizer, limit) for limit in (None, None, 2))
    assert first.spec == second.spec  # few-shot examples are drawn with a fixed seed
    assert first.spec.data != fewer.spec.data
    whole = first.evaluate(story).samples
    assert len(fewer.evaluate(story).samples) == 2
    again = first.evaluate(story).samples
    assert again.equals(whole)


def test_the_id_does_not_depend_on_where_the_data_lies(written, story, tmp_path):
    before = registry.get(f"lm-eval:{written(CHOICE)}").bind(story.tokenizer).spec
    other = tmp_path / "elsewhere.jsonl"
    other.write_text((tmp_path / "rows.jsonl").read_text())
    path = tmp_path / "task.yaml"
    config = {**yaml.safe_load(path.read_text()), "dataset_kwargs": {"data_files": {"test": str(other)}}}
    path.write_text(yaml.safe_dump(config))
    assert registry.get(f"lm-eval:{path}").bind(story.tokenizer).spec == before
    path.write_text(yaml.safe_dump({**config, "metric_list": [{"metric": "acc"}]}))
    after = registry.get(f"lm-eval:{path}").bind(story.tokenizer).spec
    assert (after.data, after.definition == before.definition) == (before.data, False)


def test_a_suites_seed_draws_other_examples(written, story):
    task = registry.get(f"lm-eval:{written(CHOICE)}")
    first, other, again = (each.bind(story.tokenizer) for each in (task, task.seeded(7), task.seeded(7)))
    assert first.spec.data != other.spec.data == again.spec.data
    assert other.evaluate(story).facts["fewshot_seed"] == 1241


def test_the_id_follows_the_right_answers(written, story, tmp_path):
    task = registry.get(f"lm-eval:{written({**CHOICE, 'num_fewshot': 0})}")
    before = task.bind(story.tokenizer).spec
    corrected = [{**row, "answer": (row["answer"] + 1) % 3} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corrected))
    assert task.bind(story.tokenizer).spec.data != before.data


def test_files_may_include_others(written):
    written({**CHOICE, "task": "base"}, "base.yaml")
    path = written({"include": "base.yaml", "task": "mine", "num_fewshot": 0})
    config = local_config(path)
    assert (config["task"], config["num_fewshot"], config["doc_to_target"]) == ("mine", 0, "answer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: t\ndoc_to_text: !function code.prompt\n", "task.yaml:2: doc_to_text: the tag !function is not allowed"),
        ("task: t\nprocess_docs:\n  !function code.docs\n", "the tag !function is not allowed"),
        ("task: t\nclass: !function code.Task\n", "the tag !function is not allowed"),
        ("task: t\nclass: code.Task\n", "task.yaml:2: class: a class would run code"),
        ("include: other.yaml\ntask: t\n", "other.yaml:1: doc_to_text: the tag !function is not allowed"),
        ("include: task.yaml\ntask: t\n", "the file includes itself"),
        ("include: none.yaml\ntask: t\n", "cannot read"),
        ("include: {a: 1}\ntask: t\n", "a file's name"),
        ("dataset_path: json\n", "needs `task:`"),
        ("task: [a, b]\n", "needs `task:`"),
        ("- a\n", "a mapping of keys"),
        ("task: t\nnonsense: 4\n", "does not load"),
        ("task: t\nmetric_list: [{metric: ./evil}]\n", "task.yaml:2: metric_list.0.metric: unknown lm-eval metric"),
        ("task: t\nmetric_list:\n- {metric: acc, hf_evaluate: true}\n", "task.yaml:3: metric_list.0.hf_evaluate"),
        ("task: t\nmetric_list: [{metric: acc, aggregation: ./evil}]\n", "unknown lm-eval aggregation './evil'"),
        ("task: t\nmetric_list: [{}]\n", "unknown lm-eval metric None"),
        ("task: t\nfilter_list: [{name: a, filter: [{function: custom}]}]\n", "unknown lm-eval filter 'custom'"),
        ("task: t\nfewshot_config: {sampler: evil}\n", "unknown lm-eval sampler 'evil'"),
        ("task: t\nuse_prompt: promptsource:all\n", "prompts of other files"),
        ("task: t\nprocess_docs: code.docs\n", "`process_docs` would run code"),
        ("task: t\ncustom_dataset: code.data\n", "`custom_dataset` would run code"),
        ("task: t\ndataset_path: pandas\n", "'pandas' is no format of data"),
        ("task: t\ndataset_path: ./evil.py\n", "t"),
        ("task: t\ndataset_kwargs: {trust_remote_code: true}\n", "dataset_kwargs.trust_remote_code: not allowed"),
        ("task: t\ndataset_kwargs: {storage_options: {}}\n", "dataset_kwargs.storage_options: not allowed"),
        ("task: t\ndataset_kwargs: {data_files: {test: ['simplecache::reference://x']}}\n", "is no path and no https"),
        ("include: metric.yaml\ntask: t\n", "metric.yaml:1: metric_list.0.metric: unknown lm-eval metric"),
        ("task: t\ndataset_path: /no/such/folder\ntest_split: test\n", "t"),
    ],
)
def test_files_that_are_refused(tmp_path, monkeypatch, text, message):
    (tmp_path / "code.py").write_text("raise SystemExit('this code was run')")
    (tmp_path / "other.yaml").write_text("doc_to_text: !function code.prompt\n")
    (tmp_path / "metric.yaml").write_text("metric_list: [{metric: ./evil}]\n")
    (tmp_path / "evil").mkdir()
    for place in ("evil.py", "evil/evil.py"):
        (tmp_path / place).write_text(f"open({str(tmp_path / 'code ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises((InputError, MissingError)) as caught:
        registry.get(f"lm-eval:{tmp_path / 'task.yaml'}").bind(None)
    assert message in str(caught.value)
    assert not (tmp_path / "code ran").exists()


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ question.__init__.__globals__ }}"]
)
def test_templates_of_local_files_are_rendered_in_a_sandbox(written, story, template):
    from lm_eval import utils

    before = utils.env
    with pytest.raises(InputError, match="unsafe"):
        registry.get(f"lm-eval:{written({**CHOICE, 'doc_to_text': template})}").bind(story.tokenizer)
    assert utils.env is before


def test_templates_of_local_files_end(written, story):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ question }}"
    with pytest.raises(InputError, match="goes through loops"):
        registry.get(f"lm-eval:{written({**CHOICE, 'doc_to_text': endless})}").bind(story.tokenizer)
    plain = (
        "{{ question | regex_replace('[aeiou]', '') }} {{ none }}{% for i in range(3) %}{{ loop.index }}{% endfor %}"
    )
    bound = registry.get(f"lm-eval:{written({**CHOICE, 'doc_to_text': plain})}").bind(story.tokenizer)
    assert all(" None123" in str(each.args) for each in bound.instances)


def test_tasks_without_a_mean(written, story):
    path = written({**CHOICE, "metric_list": [{"metric": "f1"}], "num_fewshot": 0})
    with pytest.raises(InputError, match="no metric that is a mean"):
        registry.get(f"lm-eval:{path}").bind(story.tokenizer)


def test_unknown_tasks_and_groups():
    with pytest.raises(UnknownNameError, match="unknown lm-eval task 'arc_esay'") as caught:
        registry.get("lm-eval:arc_esay").bind(None)
    assert "arc_easy" in caught.value.nearest
    with pytest.raises(InputError, match="cannot read"):
        registry.get("lm-eval:/no/such/task.yaml").bind(None)


def test_a_choice_has_its_chance_level(written):
    found = {
        c["output_type"]: registry.get(f"lm-eval:{written(c, c['task'] + '.yaml')}")
        for c in (CHOICE, GENERATE, ROLLING)
    }
    chance = {
        kind: {m.name: m.chance for m in task.bind(models.tiny_tokenizer(), None).metrics}
        for kind, task in found.items()
    }
    assert chance["multiple_choice"] == {"acc": pytest.approx(1 / 3), "acc_norm": pytest.approx(1 / 3)}
    assert chance["generate_until"] == {"exact_match": 0.0}
    assert set(chance["loglikelihood_rolling"].values()) == {None}
