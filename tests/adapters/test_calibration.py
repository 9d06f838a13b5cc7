from __future__ import annotations

import numpy as np
import pytest
from models import tiny_tokenizer

from sparsebench.adapters.calibration import Calibration
from sparsebench.errors import InputError

LONG = "".join(chr(ord("a") + i % 26) for i in range(400))


def test_crops_lie_in_the_documents() -> None:
    calibration = Calibration.from_texts("abc", [LONG, LONG.upper()], tiny_tokenizer(), sequences=7, length=50, seed=3)
    assert (calibration.sequences, calibration.length, calibration.tokens) == (7, 50, 350)
    texts = [tiny_tokenizer().decode(row) for row in calibration.ids]
    assert all(text in LONG or text in LONG.upper() for text in texts)
    # Every round takes each document once.
    assert [text.isupper() for text in texts].count(True) in (3, 4)


def test_short_documents_are_joined() -> None:
    words = [word * 3 for word in ("ab", "cd", "ef", "gh")]
    calibration = Calibration.from_texts("short", words, tiny_tokenizer(), sequences=5, length=14, seed=0)
    for row in calibration.ids:
        first, second = tiny_tokenizer().decode(row).split("\n\n")
        assert first in words
        assert second in words
        assert first != second


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="has 9 tokens, too few for one of 50"):
        Calibration.from_texts("tiny", ["abc", "def", "ghi"], tiny_tokenizer(), sequences=1, length=50)
    with pytest.raises(InputError, match="has 0 tokens"):
        Calibration.from_texts("none", [], tiny_tokenizer(), sequences=1, length=50)


def test_seed_decides_and_hash_tells() -> None:
    def made(seed: int, name: str = "x") -> Calibration:
        return Calibration.from_texts(name, [LONG, LONG[::-1]], tiny_tokenizer(), sequences=4, length=20, seed=seed)

    assert np.array_equal(made(1).ids, made(1).ids)
    assert made(1).hash == made(1, "other name").hash
    assert made(1).hash != made(2).hash
    assert made(1).describe()["hash"] == made(1).hash
    # The arrangement matters, not the tokens alone.
    assert made(1).hash != Calibration("x", made(1).ids.reshape(2, 40)).hash


def test_batches_are_whole_sequences_in_order() -> None:
    calibration = Calibration("x", np.arange(30).reshape(5, 6))
    batches = list(calibration.batches(13))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate([batch.numpy() for batch in batches]), calibration.ids)
    assert [len(batch) for batch in calibration.batches(1)] == [1] * 5


def test_ids_are_checked_and_fixed() -> None:
    with pytest.raises(InputError, match="whole numbers"):
        Calibration("x", np.zeros((2, 3)))
    with pytest.raises(InputError, match="whole numbers"):
        Calibration("x", np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        Calibration("x", np.arange(6).reshape(2, 3)).ids[0, 0] = 9
