from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import STORIES, data_folder, stories

from sparsebench.errors import IntegrityError, MissingError
from sparsebench.systems import llama2c

# What llama2.c writes with these weights at temperature 0; its own test expects this text.
GREEDY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
)


def test_greedy_text() -> None:
    model, tokenizer = stories()
    ids = torch.tensor([tokenizer("").input_ids])
    assert ids.tolist() == [[llama2c.BOS]]
    out = model.generate(ids, max_new_tokens=75, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith(GREEDY)


def test_perplexity_of_stories_is_low() -> None:
    model, tokenizer = stories()
    losses = []
    for text in STORIES:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            losses.append(float(model(ids, labels=ids).loss))
    assert all(loss < 1.6 for loss in losses), losses  # untrained: log 512 = 6.2


def test_classifier_is_tied() -> None:
    model, _ = stories()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def merged(text: str, tokens: list[tuple[float, bytes]]) -> list[int]:
    """llama2.c's encoder, restated: bytes or characters, then always the best-scored neighbours first."""
    ids = {token: index for index, (_, token) in enumerate(tokens)}
    out: list[int] = []
    for character in (" " + text) if text else "":
        data = character.encode()
        out += [ids[data]] if data in ids else [byte + 3 for byte in data]
    while True:
        best = None
        for place in range(len(out) - 1):
            joined = tokens[out[place]][1] + tokens[out[place + 1]][1]
            if joined in ids and (best is None or tokens[ids[joined]][0] > best[0]):
                best = (tokens[ids[joined]][0], place, ids[joined])
        if best is None:
            return [llama2c.BOS, *out]
        out[best[1] : best[1] + 2] = [best[2]]


WORDS = ["Once", " upon", " the", "é", "☃", "\n", "Lily", "wanted", " ", "day.", "x9", "“", "it's", "thing"]


@cache
def tokenizer_and_tokens() -> tuple[Any, list[tuple[float, bytes]]]:
    path = data_folder("stories260k") / "tok512.bin"
    return llama2c.load_tokenizer(path), llama2c.read_tokens(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS)))
def test_tokens_are_those_of_llama2c(words: list[str]) -> None:
    tokenizer, tokens = tokenizer_and_tokens()
    text = "".join(words)
    assert tokenizer(text).input_ids == merged(text, tokens)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_files_cut_short(tmp_path: Path) -> None:
    source = data_folder("stories260k")
    weights, tokens = (source / "stories260K.bin").read_bytes(), (source / "tok512.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(weights[:-4])
    (tmp_path / "tok.bin").write_bytes(tokens[:-1])
    with pytest.raises(MissingError, match="holds no llama2"):
        llama2c.load(tmp_path)
    with pytest.raises(IntegrityError, match="header"):
        llama2c.load_model(tmp_path / "model.bin")
    with pytest.raises(IntegrityError, match="cut short"):
        llama2c.load_tokenizer(tmp_path / "tok.bin")


def test_untied_classifier(tmp_path: Path) -> None:
    header = llama2c.Header(8, 12, 2, 2, 1, 10, 6, shared=False)
    values = torch.randn((header.bytes - llama2c.HEADER.size) // 4)
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<7i", 8, 12, 2, 2, 1, -10, 6) + values.numpy().tobytes())
    model = llama2c.load_model(path)
    assert torch.equal(model.lm_head.weight.flatten(), values[-80:])
    assert torch.equal(model.model.embed_tokens.weight.flatten(), values[:80])
