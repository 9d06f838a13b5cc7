"""Counting: which words of a long list stand there most often.

| kind | the list | asked |
| --- | --- | --- |
| `common` | three words fill a quarter of it or more; the others take turns | the three |
| `frequent` | coined words, the r-th of which stands there in proportion to r^-2 | the three most frequent |

Every place of the list matters: nothing that leaves out most of it answers this for certain. The tasks follow RULER
(Hsieh et al. 2024); the shares here are stated so that they hold at every length.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle, islice
from random import Random
from typing import Any

from sparsebench.data.embedded.exact_length import Encode, Sample
from sparsebench.data.embedded.exact_length import rows as exact_rows
from sparsebench.data.embedded.words import FIRST, SECOND, coined
from sparsebench.errors import InputError, UnknownNameError

VERSION = "1"

KINDS = ("common", "frequent")
_QUARTER = 4
_ASKED = 3
_LEAST = 16
"""Words of the shortest list: fewer cannot be told apart by their counts."""
_COINED = 40


def rows(
    encode: Encode, *, length: int, n: int, kind: str = "common", seed: int = 0, room: int = 0
) -> list[dict[str, Any]]:
    """Samples of one length, of one of `KINDS`; other arguments as `needles.rows` has them.

    Raises:
        UnknownNameError: No such kind.
        InputError: n is less than 1, or the length is too short.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of counted words", kind, KINDS)
    if n < 1:
        raise InputError(f"counted-words: {n} samples", "ask for 1 or more")
    make = _common if kind == "common" else _frequent
    makes = [partial(make, seed, number) for number in range(n)]
    return exact_rows(f"counted-words/{kind}/{length}/{seed}", encode, makes, length=length, room=room)


def _common(seed: int, number: int, size: int) -> Sample:
    draw = Random(f"common words {seed} {number}")
    words = [*FIRST, *SECOND]
    draw.shuffle(words)
    asked, others = words[:_ASKED], words[_ASKED:]
    places = max(size, _LEAST)
    each = places // (_QUARTER * _ASKED) + 1
    # No other word may come near: with few words for a long list the common ones have more than a quarter.
    each = max(each, 4 * (places // len(others) + 1))
    listed = [word for word in asked for _ in range(each)]
    listed += islice(cycle(others), max(0, places - len(listed)))
    draw.shuffle(listed)
    text = "".join(f"\n{place}. {word}" for place, word in enumerate(listed, 1))
    context = f"Below is a numbered list of words. {_ASKED} of them stand there far more often than the others.\n{text}"
    asks = f"\n\nThe {_ASKED} most common words of the list are"
    return Sample(context, asks, tuple(asked), {"counts": [each] * _ASKED})


def _frequent(seed: int, number: int, size: int) -> Sample:
    draw = Random(f"frequent words {seed} {number}")
    words = list(islice(coined(draw), _COINED))
    shares = [rank**-2.0 for rank in range(1, _COINED + 1)]
    places = max(size, _LEAST)
    counts = [max(1, round(places * share / sum(shares))) for share in shares]
    listed = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    draw.shuffle(listed)
    context = "Below is a text of coined words. Some stand there far more often than others.\n\n" + " ".join(listed)
    asks = f"\n\nThe {_ASKED} most frequent words of the text are"
    return Sample(context, asks, tuple(words[:_ASKED]), {"counts": counts[:_ASKED]})
