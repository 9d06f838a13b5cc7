from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from models import data_folder, tiny_tokenizer

from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.identity import cell_id
from sparsebench.plan import plan
from sparsebench.power import comparisons
from sparsebench.runner import Session, stack_of
from sparsebench.suite_source import load_suite
from sparsebench.tasks.base import DefinedTask, Task


def planned(small, limit=None, **changes):
    return plan(load_suite(str(small.write(**changes))), limit)


def rows(made, task):
    return {(c.placement.label, c.spec.seed): c for c in made.cells if c.spec.task.id == task}


def one_grid(small, *methods, **options):
    grid = {**small.data["grids"][0], "tasks": [small.task("tiny-perplexity")], "methods": list(methods), **options}
    return [grid]


def test_every_row_on_every_task_with_dense_added_and_paired(small):
    made = planned(small)
    assert len(made.cells) == 3 * 6 + 1
    for task in ("tiny-answers", "tiny-choice", "tiny-perplexity"):
        cells = rows(made, task)
        assert list(cells) == [
            ("dense", 0), ("dense (A/A batch 64)", 0), ("random-weights 50%", 0), ("random-weights 50%", 1),
            ("magnitude 20%", 0), ("magnitude 2:4", 0),
        ]  # fmt: skip
        dense = cells.pop(("dense", 0))
        assert (dense.placement.role, dense.placement.baseline, dense.spec.stack) == ("baseline", None, [])
        assert {c.placement.baseline for c in cells.values()} == {dense.id}
        assert {c.placement.role for c in cells.values()} == {"noise", "control", "comparator"}
        noise = cells["dense (A/A batch 64)", 0]
        assert (noise.batch_tokens, noise.spec.system.replica) == (64, "A/A batch 64")
        assert noise.spec.system.fingerprint == dense.spec.system.fingerprint
    (search,) = rows(made, "tiny-search").values()
    assert (search.placement.label, search.placement.role, search.placement.baseline) == ("bm25", "baseline", None)


def test_ids_are_those_of_the_specifications_and_the_same_in_every_plan(small):
    made, again = planned(small), planned(small)
    assert [c.id for c in made.cells] == [c.id for c in again.cells]
    assert len({c.id for c in made.cells}) == len(made.cells)
    for cell in made.cells:
        assert cell.id == cell_id(json.loads(json.dumps(cell.spec.plain())))
    assert made.lock == again.lock
    json.dumps(made.lock, allow_nan=False)


def test_other_data_other_ids(small):
    before = planned(small)
    path = small.folder / "facts.jsonl"
    path.write_text(path.read_text().replace("Lily", "Lola", 1))
    after = planned(small)
    changed = {c.spec.task.id for c, d in zip(before.cells, after.cells, strict=True) if c.id != d.id}
    assert changed == {"tiny-answers", "tiny-choice"}


def test_another_model_other_ids(small, tmp_path):
    other = shutil.copytree(data_folder("stories260k"), tmp_path / "model", copy_function=shutil.copyfile)
    reference = f"path:{other}"
    before = plan(load_suite(str(small.path)).with_model(reference))
    weights = other / "stories260K.bin"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = plan(load_suite(str(small.path)).with_model(reference))
    changed = {c.spec.system.kind for c, d in zip(before.cells, after.cells, strict=True) if c.id != d.id}
    assert changed == {"causal-lm"}
    assert all(
        c.id != d.id for c, d in zip(before.cells, after.cells, strict=True) if c.spec.system.kind == "causal-lm"
    )


def test_a_changed_definition_changes_ids_but_a_changed_title_does_not(small):
    before = [c.id for c in planned(small).cells]
    path = small.folder / "tiny-perplexity.yaml"
    task = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**task, "title": "another", "description": "too"}))
    assert [c.id for c in planned(small).cells] == before
    path.write_text(yaml.safe_dump({**task, "score_from": 8}))
    assert [c.id for c in planned(small).cells] != before


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_out_all_cells_and_keep_baselines_with_them(small, count):
    methods = [
        "dense",
        {"method": "magnitude", "budgets": {"sparsity": [0.1, 0.5]}},
        {"method": "random-weights", "budgets": {"sparsity": 0.5}, "baseline": "magnitude 50%"},
    ]
    tasks = [small.task(f"tiny-{name}") for name in ("answers", "choice", "perplexity")]
    made = planned(small, grids=one_grid(small, *methods, tasks=tasks))
    parts = [made.shard(index, count) for index in range(1, count + 1)]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in made.cells)
    for part in parts:
        ids = {c.id for c in part}
        assert all(c.placement.baseline in ids for c in part if c.placement.baseline)
    assert [[c.id for c in part] for part in parts] == [
        [c.id for c in made.shard(i, count)] for i in range(1, count + 1)
    ]


def test_limits_are_the_smaller_of_the_two(small):
    tasks = [{"task": small.task("tiny-choice"), "limit": 3}, small.task("tiny-perplexity")]
    grids = one_grid(small, "dense", tasks=tasks)
    assert [c.spec.task.limit for c in planned(small, grids=grids).cells] == [3, None]
    assert [c.spec.task.limit for c in planned(small, limit=4, grids=grids).cells] == [3, 4]
    assert [c.spec.task.limit for c in planned(small, limit=2, grids=grids).cells] == [2, 2]
    samples = [b.workload.samples for b in planned(small, limit=2, grids=grids).tasks.values()]
    assert samples == [2, 2]


def test_a_task_at_two_sizes_is_locked_at_both(small):
    name = small.task("tiny-choice")
    grid = small.data["grids"][0]
    grids = [{**grid, "tasks": [name]}, {**grid, "name": "small", "tasks": [{"task": name, "limit": 3}]}]
    locked = planned(small, grids=grids).lock["tasks"]
    assert {key.rpartition(", ")[2]: spec["limit"] for key, spec in locked.items()} == {
        "all samples": None,
        "3 samples": 3,
    }
    assert {key.rpartition(" on ")[0] for key in locked} == {name}


def test_the_family_of_a_row_is_its_methods(small):
    wina = {"method": "wina", "knobs": {"scope": "all"}, "budgets": {"sparsity": 0.5}}
    magnitude = {"method": "magnitude", "budgets": {"sparsity": [0.2, 0.5]}}
    families = {
        c.placement.label: c.placement.family for c in planned(small, grids=one_grid(small, magnitude, wina)).cells
    }
    assert families == {
        "dense": "pruning",
        "wina 50%": "activation",
        "magnitude 20%": "pruning",
        "magnitude 50%": "pruning",
    }


def test_stacks(small):
    stack = [
        {"method": "magnitude", "budget": {"sparsity": 0.5}},
        {"method": "streaming-llm", "budget": {"tokens": 16}},
    ]
    dense, both = planned(small, grids=one_grid(small, {"stack": stack})).cells
    assert both.placement.label == "magnitude 50% + streaming-llm 16 tokens"
    assert [m.budget for m in both.spec.stack] == [{"sparsity": 0.5}, {"tokens": 16}]
    assert both.placement.baseline == dense.id
    other = planned(small, grids=one_grid(small, {"stack": stack[::-1]})).cells[1]
    assert other.id != both.id


def test_knobs_versions_and_calibration_are_in_the_specification(small):
    calibration = {"prose": {"data": "prose", "sequences": 2, "length": 64}}
    wanda = {"method": "wanda", "budgets": {"sparsity": 0.5}, "knobs": {"compare_group": "layer"}}
    grids = one_grid(small, wanda, calibration="prose")
    cell = planned(small, grids=grids, calibration=calibration).cells[1]
    (member,) = cell.spec.stack
    assert member.knobs["compare_group"] == "layer"
    assert "stats_pass" in member.knobs  # defaults too: another default tomorrow is another cell
    assert cell.placement.config == "compare_group=layer"
    assert len(cell.spec.calibration["hash"]) == 64
    calibration["prose"]["seed"] = 1
    assert planned(small, grids=grids, calibration=calibration).cells[1].id != cell.id
    with pytest.raises(InputError, match="reads a calibration text"):
        planned(small, grids=one_grid(small, wanda))


def test_a_row_of_two_grids_that_is_compared_otherwise_is_refused(small):
    rows = ["dense", {"method": "magnitude", "budgets": {"sparsity": [0.2, 0.5]}}]
    (first,) = one_grid(small, *rows)
    made = planned(small, grids=[first, {**first, "name": "again"}])
    assert {c.placement.grid for c in made.cells} == {first["name"]}  # the same rows, meaning the same
    with pytest.raises(InputError, match=f"grid {first['name']} and of grid other, with another role and baseline"):
        planned(small, grids=[first, {**first, "name": "other", "baseline": "magnitude 20%"}])
    systems = {**small.data["systems"], "twin": {**small.data["systems"]["stories"], "base_precision": "4-bit"}}
    with pytest.raises(InputError, match="another base_precision in each"):
        planned(small, systems=systems, grids=[first, {**first, "name": "other", "system": "twin"}])


def noise(small, *changes, **system):
    systems = {**small.data["systems"], "stories": {**small.data["systems"]["stories"], "dtype": "float32", **system}}
    rows = [{"method": "dense", "noise": change} for change in changes]
    made = planned(small, systems=systems, grids=one_grid(small, "dense", *rows))
    return [(c.spec.system.replica, c.spec.system.dtype, c.batch_tokens) for c in made.cells if c.spec.system.replica]


def test_noise_rows_that_differ_are_kept_apart(small):
    assert noise(
        small,
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "batch_tokens": 64},
        {"dtype": "bfloat16", "batch_tokens": 128},
        {"batch_tokens": 64},
        {"dtype": "float32", "batch_tokens": 32},
    ) == [
        ("A/A bfloat16", "bfloat16", None),
        ("A/A bfloat16, batch 64", "bfloat16", 64),
        ("A/A bfloat16, batch 128", "bfloat16", 128),
        ("A/A batch 64", "float32", 64),
        ("A/A batch 32", "float32", 32),
    ]


@pytest.mark.parametrize(
    ("change", "system"),
    [
        ({"dtype": "float32"}, {}),
        ({"batch_tokens": 2048}, {}),
        ({"batch_tokens": 64}, {"batch_tokens": 64}),
        ({"dtype": "float32", "batch_tokens": 64}, {"batch_tokens": 64}),
    ],
)
def test_a_noise_row_that_is_the_dense_row_is_refused(small, change, system):
    with pytest.raises(InputError, match="runs as the dense one does"):
        noise(small, change, **system)


def test_a_noise_row_in_the_only_dtype_of_a_machine_takes_another_batch(small, monkeypatch):
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    assert noise(small, {"dtype": "float32"}, dtype="auto") == [("A/A batch 384", "float32", 384)]


def test_a_suites_seed_draws_other_samples(small):
    tasks = [
        {"task": "needle-512", "limit": 4},
        {"task": small.task("tiny-choice"), "limit": 2},
        {"task": small.task("tiny-choice")},
    ]
    made = {
        seed: planned(
            small, seed=seed, grids=[{"name": "g", "system": "stories", "tasks": tasks, "methods": ["dense"]}]
        )
        for seed in (0, 7)
    }
    ids = {seed: [c.id for c in plan.cells] for seed, plan in made.items()}
    assert [a == b for a, b in zip(ids[0], ids[7], strict=True)] == [False, False, True]  # the last one asks all rows
    system = SimpleNamespace(ref="here", tokenizer=tiny_tokenizer())
    for cell in made[7].cells[1:]:
        assert Session().task(cell, system).spec == cell.spec.task  # as a worker binds it


def test_a_task_that_follows_no_seed_is_refused(small, monkeypatch):
    monkeypatch.setattr(DefinedTask, "seeded", Task.seeded)
    with pytest.raises(InputError, match="does not follow a suite's seed"):
        planned(small, seed=1)


def seeded(*seeds):
    methods = ("random-weights", "random-activations")
    knobs = [{} if seed is None else {"seed": seed} for seed in seeds]
    members = [
        {"method": method, "budget": {"sparsity": 0.3}, "knobs": own}
        for method, own in zip(methods, knobs, strict=True)
    ]
    return {"stack": members}


def test_each_member_of_a_stack_keeps_its_seed(small):
    stacks = [(3, 5), (3, 9), (0, 5), (5, 5), (None, 5), (5, None)]
    made = planned(small, grids=one_grid(small, "dense", *(seeded(*stack) for stack in stacks[:4])))
    ran = [[member.adapter.seed for member in stack_of(c.spec)] for c in made.cells if c.spec.stack]
    assert ran == [[3, 5], [3, 9], [0, 5], [5, 5]]
    assert len({c.id for c in made.cells}) == 5
    for stack in stacks[4:]:
        made = planned(small, grids=one_grid(small, {**seeded(*stack), "seeds": [0, 1]}))
        ran = [[member.adapter.seed for member in stack_of(c.spec)] for c in made.cells if c.spec.stack]
        assert ran == [[row if seed is None else seed for seed in stack] for row in (0, 1)]


def test_seeds_beside_a_knob_seed_are_refused(small):
    row = {"method": "random-weights", "budgets": {"sparsity": 0.5}, "knobs": {"seed": 3}, "seeds": [0, 1]}
    for entry in (row, {**seeded(3, 5), "seeds": [0, 1]}):
        with pytest.raises(InputError, match="`seeds` beside a knob `seed`"):
            planned(small, grids=one_grid(small, entry))
    with pytest.raises(InputError, match="a seed stands twice"):
        planned(small, grids=one_grid(small, {**row, "knobs": {}, "seeds": [1, 1]}))


def test_a_row_on_another_system_and_seeds_find_their_own_baselines(small):
    methods = [
        {"method": "random-weights", "budgets": {"sparsity": 0.5}, "seeds": [0, 1]},
        {"stack": [
            {"method": "random-weights", "budget": {"sparsity": 0.5}},
            {"method": "streaming-llm", "budget": {"tokens": 16}},
        ], "seeds": [0, 1], "baseline": "random-weights 50%"},
    ]  # fmt: skip
    made = planned(small, grids=one_grid(small, *methods))
    seeds = {c.id: c.spec.seed for c in made.cells}
    paired = [(c.spec.seed, seeds[c.placement.baseline]) for c in made.cells if len(c.spec.stack) == 2]
    assert paired == [(0, 0), (1, 1)]


def test_of_two_rows_of_one_name_the_one_without_knobs_is_the_baseline(small):
    magnitude = {"method": "magnitude", "budgets": {"sparsity": 0.5}}
    row, layer = ({**magnitude, "knobs": {"compare_group": group}} for group in ("row", "layer"))
    random = {"method": "random-weights", "budgets": {"sparsity": 0.5}}
    grid = {**one_grid(small, row, magnitude, random, "dense")[0], "baseline": "magnitude 50%"}
    made = {c.placement.config or c.placement.label: c for c in planned(small, grids=[grid]).cells}
    plain = made.pop("magnitude 50%")
    assert (plain.placement.role, plain.placement.baseline) == ("baseline", None)
    assert {c.placement.baseline for c in made.values()} == {plain.id}
    assert "baseline" not in {c.placement.role for c in made.values()}
    for rows in ((row, layer), (row, layer, random)):
        with pytest.raises(InputError, match="several rows are called 'magnitude 50%'"):
            planned(small, grids=[{**grid, "methods": list(rows)}])


def test_a_row_is_paired_with_its_model_in_its_own_dtype(small):
    systems = {
        **small.data["systems"],
        "half": {**small.data["systems"]["stories"], "dtype": "bfloat16"},
    }
    half = {"method": "magnitude", "budgets": {"sparsity": 0.5}, "system": "half"}
    dense = {"method": "dense", "system": "half"}

    def pairs(*methods):
        made = planned(small, systems=systems, grids=one_grid(small, *methods)).cells
        dtypes = {c.id: c.spec.system.dtype for c in made}
        return [(c.spec.system.dtype, dtypes[c.placement.baseline]) for c in made if c.placement.baseline]

    assert pairs("dense", dense, half) == [("bfloat16", "bfloat16")]
    assert pairs("dense", half) == [("bfloat16", "float32")]  # there is no other; the report says so
    noise = {"method": "dense", "noise": {"dtype": "bfloat16"}}
    assert pairs("dense", dense, noise) == [("bfloat16", "float32")]  # noise of the first, whatever its dtype


def test_what_does_not_fit_together(small):
    search, words = small.task("tiny-search"), small.task("tiny-perplexity")
    wrong = [
        ({"tasks": [search], "methods": ["dense"]}, "tiny-search.yaml does not run on a causal-lm"),
        ({"tasks": [words], "methods": ["dense"], "system": "lexical"}, "does not run on a lexical"),
        ({"tasks": [words], "methods": ["bm25"]}, "bm25 does not run on a causal-lm"),
    ]
    for changes, message in wrong:
        with pytest.raises(InputError, match=message):
            planned(small, grids=[{**one_grid(small)[0], **changes}])


def test_margins_of_metrics_that_no_task_has(small):
    margins = {"tiny-perplexity": {"perplexty": {"relative": 0.1}}}
    path = small.task("tiny-perplexity")
    with pytest.raises(InputError, match=r"margins.tiny-perplexity: unknown metric 'perplexty'") as caught:
        planned(small, grids=one_grid(small, "dense", tasks=[path]), conclude={"margins": margins})
    assert "did you mean 'perplexity'?" in str(caught.value)


def test_what_is_missing_is_said_before_anything_runs(small, monkeypatch, tmp_path):
    systems = {**small.data["systems"], "stories": {"model": f"path:{tmp_path / 'nowhere'}"}}
    with pytest.raises(MissingError, match="nowhere does not exist"):
        planned(small, systems=systems)
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    with pytest.raises(MissingError, match="SPARSEBENCH_DATA") as caught:
        planned(small, grids=one_grid(small, "dense", tasks=["arc-easy"]))
    assert "arc_easy" in str(caught.value)
    with pytest.raises(UnknownNameError):
        planned(small, grids=one_grid(small, "dense", tasks=["lm-eval:no-such-task-anywhere"]))


def test_a_model_that_is_no_causal_language_model(small, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    suite = load_suite(str(small.path)).with_model(f"path:{tmp_path / 'bert'}")
    with pytest.raises(InputError, match="BertForMaskedLM, not a causal language model"):
        plan(suite)
    (tmp_path / "bert" / "config.json").write_text('{"architectures"')
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        plan(suite)


def test_a_model_folder_cut_short(small, tmp_path):
    from models import tiny_model, tiny_tokenizer

    folder = tmp_path / "llama"
    tiny_model("llama").save_pretrained(folder)
    suite = load_suite(str(small.path)).with_model(f"path:{folder}")
    with pytest.raises(InputError, match="its tokenizer does not load"):
        plan(suite)
    tiny_tokenizer().save_pretrained(folder)
    assert plan(suite).cells[0].flops > 0
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut short or damaged"):
        plan(suite)
    weights.unlink()
    with pytest.raises(MissingError, match="holds no model weights"):
        plan(suite)


def test_two_activation_methods_in_one_stack_are_refused(small):
    stack = [
        {"method": "teal", "knobs": {"rule": "topk"}, "budget": {"sparsity": 0.5}},
        {"method": "griffin", "budget": {"sparsity": 0.5}},
    ]
    with pytest.raises(InputError, match="teal and griffin in one stack"):
        planned(small, grids=one_grid(small, {"stack": stack}))


def test_a_margin_that_allows_everything_is_refused(small):
    margins = {"*": {"*": {"points": 5}}}
    path = small.task("tiny-choice")
    with pytest.raises(InputError, match="allows everything to be lost"):
        comparisons(planned(small, grids=one_grid(small, "dense", tasks=[path]), conclude={"margins": margins}))


def test_margins_are_printed_in_the_unit_of_what_can_be_seen(small):
    margins = {"*": {"*": {"points": 0.02}}}
    tasks = [small.task("tiny-choice"), small.task("tiny-perplexity")]
    made = comparisons(planned(small, grids=one_grid(small, "dense", tasks=tasks), conclude={"margins": margins}))
    found = {each.task: (each.margin, each.detectable) for each in made}
    assert found["tiny-choice"][0] == "2 points" and found["tiny-choice"][1].endswith(" points")
    assert found["tiny-perplexity"][0] == "0.02 (absolute)"  # nobody knows yet what share of the baseline that is
