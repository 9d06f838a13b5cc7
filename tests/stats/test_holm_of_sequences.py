import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import InputError
from sparsebench.stats import holm, holm_of_sequences

P = st.floats(0, 1)


@given(st.lists(P, min_size=1, max_size=8))
def test_sequences_of_one_test_are_holm(p: list[float]) -> None:
    assert [row[0] for row in holm_of_sequences([[x] for x in p])] == pytest.approx(holm(p))


@given(st.lists(P, min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_one_sequence_is_fixed_sequence_testing(p: list[float], alpha: float) -> None:
    (adjusted,) = holm_of_sequences([p])
    assert adjusted == pytest.approx(list(np.maximum.accumulate(p)))
    passed = next((k for k, x in enumerate(p) if x > alpha), len(p))
    assert [x <= alpha for x in adjusted] == [k < passed for k in range(len(p))]


@given(st.lists(st.lists(P, min_size=1, max_size=4), min_size=1, max_size=4), st.floats(0.01, 0.2))
def test_the_adjusted_values_are_the_procedure(sequences: list[list[float]], alpha: float) -> None:
    """Run the chain procedure at a level, step by step."""
    at = {k: 0 for k in range(len(sequences))}
    rejected: set[tuple[int, int]] = set()
    going = True
    while going and at:
        going = False
        for k in sorted(at):
            if sequences[k][at[k]] <= alpha / len(at):
                rejected.add((k, at[k]))
                at[k] += 1
                if at[k] == len(sequences[k]):
                    del at[k]
                going = True
                break
    adjusted = holm_of_sequences(sequences)
    assert {(k, j) for k, row in enumerate(adjusted) for j, p in enumerate(row) if p <= alpha} == rejected


def test_it_keeps_what_holm_over_all_levels_would_not() -> None:
    sequences = [[0.012, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]]
    assert holm_of_sequences(sequences)[0][0] == pytest.approx(0.024)
    assert holm([p for row in sequences for p in row])[0] == pytest.approx(0.096)


def test_what_was_not_tested_ends_its_sequence() -> None:
    first, second = holm_of_sequences([[math.nan, 0.001], [0.02]])
    assert math.isnan(first[0]) and first[1] == 1.0
    assert second == [pytest.approx(0.04)], "its share of the level is spent"
    assert holm_of_sequences([]) == [] and holm_of_sequences([[]]) == [[]]
    with pytest.raises(InputError):
        holm_of_sequences([[1.5]])


def test_any_false_rejection_is_no_likelier_than_the_level() -> None:
    """True and false hypotheses in each sequence, z scores that share a cause: the worst case is where losses grow."""
    rng = np.random.default_rng(0)
    true_from, alpha, runs, wrong = 2, 0.05, 4000, 0
    for _ in range(runs):
        shared = rng.normal()
        sequences = []
        for _ in range(3):
            z = 0.5 * shared + math.sqrt(0.75) * rng.normal(size=4)
            effect = np.where(np.arange(4) < true_from, 4.0, 0.0)
            sequences.append([0.5 * math.erfc((x + e) / math.sqrt(2)) for x, e in zip(z, effect, strict=True)])
        adjusted = holm_of_sequences(sequences)
        wrong += any(p <= alpha for row in adjusted for p in row[true_from:])
    assert wrong / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
