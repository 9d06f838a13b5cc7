"""Two questions on one context: whether what was kept for the first still answers the second.

The context hides four access codes. Two rows stand for it, one for each question:

| turn | before prefill ends | decoded |
| --- | --- | --- |
| first | all of it: context and first question | the answer |
| second | context and first question | the first answer as it should be, the second question, the answer |

A method that evicts keys when prefill ends sees the first question in both rows. In the first it may keep what that
question is about; in the second it is asked for something else. Rows of one context are one cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample, depths
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.needles import Hidden, hide, question

VERSION = "1"


def rows(encode: Encode, *, length: int, n: int, seed: int = 0, room: int = 0) -> list[dict[str, Any]]:
    """Two rows for each of n contexts; other arguments as `needles.rows` has them.

    Returns:
        Rows as `exact_length.Sample.row` has them, with `turn` (`first` or `second`) and `document` (the context that
        both share). In the rows of the second turn `context` ends with the first question; in those of the first it
        is empty, and the question has all: `context` is where prefill ends.

    Raises:
        InputError: The length is too short, or n is less than 1.
    """
    hidden = [
        hide("multi-key", seed, number, depth) for number, depth in enumerate(depths("two-questions depths", n, seed))
    ]
    name = f"two-questions/{length}/{seed}"
    found = exact_rows(name, encode, [partial(_second, each) for each in hidden], length=length, room=room)
    both = [list(_both(encode, each, second)) for each, second in zip(hidden, found, strict=True)]
    return [row for turn in zip(*both, strict=True) for row in turn]


def _second(hidden: Hidden, words: int) -> Sample:
    """The second turn; what is asked first lies at the stated depth, what is asked then anywhere."""
    asks = question(hidden.names[:1], 1)
    follows = f" {hidden.codes[0]}." + question(hidden.names[1:2], 1)
    document = hidden.context(words)
    return Sample(document + asks, follows, (hidden.codes[1],), {"turn": "second", "document": document})


def _both(encode: Encode, hidden: Hidden, second: dict[str, Any]) -> Iterator[dict[str, Any]]:
    context = second["id"]
    first = Sample("", second["context"], (hidden.codes[0],), {"turn": "first", "document": second["document"]})
    yield {**first.row(f"{context}/first", len(encode(first.text))), "cluster": context}
    yield {**second, "id": f"{context}/second", "cluster": context}
