"""Damaged models are refused in words, whatever is wrong with them."""

from __future__ import annotations

import random
import shutil
import struct
from collections import Counter
from pathlib import Path

import fuzzing
import models
import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from sparsebench.errors import InputError
from sparsebench.systems.loading import check_causal, load_causal_lm, model_files
from sparsebench.systems.tiny import tiny_tokenizer

DIMENSIONS, HIDDEN, VOCABULARY = 16, 32, 40
CHANGES = 300


def write_gguf(path: Path, blocks: int = 1, **changes: int) -> Path:
    """A Llama of one block with a tokenizer, as small as it gets."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_context_length(64)
    writer.add_embedding_length(changes.get("dimensions", DIMENSIONS))
    writer.add_feed_forward_length(changes.get("hidden", HIDDEN))
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"\u2581{chr(97 + i)}" for i in range(VOCABULARY - 3))])
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    square, up = (DIMENSIONS, DIMENSIONS), (HIDDEN, DIMENSIONS)
    shapes = {f"blk.0.attn_{name}.weight": square for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_up.weight": up, "blk.0.ffn_gate.weight": up, "blk.0.ffn_down.weight": up[::-1]}
    shapes |= {
        name: (DIMENSIONS,) for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    }
    shapes |= {"token_embd.weight": (VOCABULARY, DIMENSIONS), "output.weight": (VOCABULARY, DIMENSIONS)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name not in changes:
            writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_damaged_gguf_files_are_refused_or_load(tmp_path: Path, cache: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf")
    assert load_causal_lm(f"path:{whole}", "float32").base_precision == "32-bit"
    seed = whole.read_bytes()
    random_ = random.Random(0)
    said: Counter[str] = Counter()
    path = tmp_path / "model.gguf"
    for _ in range(CHANGES):
        path.write_bytes(fuzzing.change_bytes(seed, random_))
        try:
            model_files(f"path:{path}")
            said["loads"] += 1
        except InputError as error:
            assert error.message
            said["refused"] += 1
        shutil.rmtree(cache / "converted", ignore_errors=True)
    assert said["refused"] > CHANGES // 4
    assert said["loads"]  # bytes of the weights themselves


@pytest.mark.parametrize("changes", [{"blocks": 2**31 - 1}, {"dimensions": 2**20, "hidden": 2**20}])
def test_a_gguf_file_that_speaks_of_more_than_it_holds_is_refused_at_once(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    with pytest.raises(InputError, match="declares"):
        model_files(f"path:{write_gguf(tmp_path / 'm.gguf', **changes)}")


def test_a_gguf_file_without_a_weight_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", **{"blk.0.ffn_up.weight": 0})
    with pytest.raises(InputError, match=r"1 weights are not in the checkpoint.*up_proj"):
        model_files(f"path:{path}")


def test_a_tokenizer_with_tokens_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    model, tokenizer = models.tiny_model("llama"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as many have that were tuned: it is never fed
    tokenizer.save_pretrained(tmp_path)
    assert load_causal_lm(f"path:{tmp_path}").tokenizer.pad_token_id == 260
    tokenizer.add_tokens(["<one>", "<too>", "<many>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its tokenizer has tokens up to 263 and the model 260 embeddings"):
        load_causal_lm(f"path:{tmp_path}")


def test_a_gguf_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    for size in (3, 24, 60, 102, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"m\.gguf"):
            model_files(f"path:{path}")
    path.write_bytes(content[:8] + struct.pack("<Q", 2**60) + content[16:])
    with pytest.raises(InputError, match=r"m\.gguf"):
        model_files(f"path:{path}")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}", "\udcff", "{"])
def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    models.tiny_model("llama").save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="not JSON"):
        check_causal(model_files(f"path:{tmp_path / 'm'}"))


class Order:
    """What a pickle runs when it is read without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.place), "w")


def test_of_a_pickle_tensors_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    model = models.tiny_model("llama")
    model.save_pretrained(tmp_path / "m")
    models.tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    weights = dict(model.state_dict())
    torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
    loaded = load_causal_lm(f"path:{tmp_path / 'm'}", "float32").model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    torch.save({**weights, "more": Order(tmp_path / "made")}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(InputError, match="does not load"):
        load_causal_lm(f"path:{tmp_path / 'm'}", "float32")
    assert not (tmp_path / "made").exists()
