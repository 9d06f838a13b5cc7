"""A judge model behind an OpenAI-compatible endpoint: which of two texts answers an instruction better.

Judges prefer what stands first or second, and do not always answer in the form that they are asked for. So each pair is
judged in both orders, a preference counts as far as both agree, and answers that cannot be read are counted, never
dropped in silence: a system whose pairs could not be judged has no score for them.
"""

from __future__ import annotations

import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sparsebench.errors import InputError, MissingError
from sparsebench.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd

Ask = Callable[[str], str]
"""Sends a prompt to a judge and gives its answer."""

PROMPT = """Two assistants were given the same instruction. Judge how well each answered it: whether its answer is
right, relevant, coherent and complete. Neither the order nor the length of the answers should matter.

[Instruction]
{instruction}

[Answer A]
{first}

[Answer B]
{second}

Explain briefly, then end with one line in exactly this form, with a score from 1 to 10 for each:
Scores: A=<score> B=<score>"""
SCORES = re.compile(
    r"^\W*Scores:\W*A\s*=\s*(\d+(?:\.\d+)?)\W+B\s*=\s*(\d+(?:\.\d+)?)\W*$", re.MULTILINE | re.IGNORECASE
)
METRICS = (
    Metric(name="preference over dense", column="preference", headline=True, chance=0.0),
    Metric(name="judged differently in the two orders", column="inconsistent", kind="binary", higher_is_better=False),
    Metric(name="unreadable judgements", column="unreadable", higher_is_better=False),
)
"""Metrics of what `preferences` gives."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is.

    Attributes:
        url: The address up to and with the version: `http://localhost:8000/v1`.
        model: The model's name there.
        key: Name of the environment variable that holds the key; empty where none is needed.
        timeout: Seconds to wait for an answer.
    """

    url: str
    model: str
    key: str = ""
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise InputError(f"a judge's address is http or https, not {self.url!r}")

    def ask(self, prompt: str) -> str:
        """The judge's answer, greedily decoded.

        Raises:
            MissingError: The key is not set, or the endpoint does not answer.
            InputError: It answers something else than a chat completion.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            if self.key not in os.environ:
                raise MissingError(f"the environment variable {self.key} is not set", "it holds the judge's key")
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": 0}
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found = json.loads(answer.read())
            return str(found["choices"][0]["message"]["content"])
        except (urllib.error.URLError, TimeoutError) as error:
            raise MissingError(f"the judge at {urlsplit(self.url).netloc} does not answer: {error}") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"the judge at {urlsplit(self.url).netloc} gave no chat completion: {error!r}") from None


def scores(answer: str) -> tuple[float, float] | None:
    """The scores of A and B in a judge's answer; None unless its last line of scores is whole and within 1 to 10."""
    found = SCORES.findall(answer)
    if not found:
        return None
    first, second = (float(number) for number in found[-1])
    return (first, second) if 1 <= min(first, second) and max(first, second) <= 10 else None


def preference(ask: Ask, instruction: str, ours: str, theirs: str) -> dict[str, float]:
    """Both orders of one pair.

    Args:
        ask: The judge.
        instruction: What both texts answer.
        ours: The text of the system under test.
        theirs: The baseline's.

    Returns:
        `preference`: 1 where ours is scored higher in both orders, -1 where theirs is, 0 where orders disagree or
        scores are equal, halves where one order is a tie; NaN where an answer could not be read. An empty text against
        one that is not loses without being judged. `inconsistent`: whether the two orders prefer different texts;
        `unreadable`: share of the two answers that could not be read.
    """
    empty = bool(theirs.strip()) - bool(ours.strip())
    if empty or ours == theirs:
        return {"preference": -float(empty), "inconsistent": 0.0, "unreadable": 0.0}
    answers = [
        ask(PROMPT.format(instruction=instruction, first=a, second=b)) for a, b in ((ours, theirs), (theirs, ours))
    ]
    read = [scores(answer) for answer in answers]
    unreadable = sum(pair is None for pair in read) / 2
    if read[0] is None or read[1] is None:
        return {"preference": math.nan, "inconsistent": math.nan, "unreadable": unreadable}
    signs = [_sign(read[0][0] - read[0][1]), _sign(read[1][1] - read[1][0])]
    return {"preference": sum(signs) / 2, "inconsistent": float(signs[0] * signs[1] < 0), "unreadable": unreadable}


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def preferences(ask: Ask, instructions: Mapping[str, str], ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Every sample of a cell against the same sample of its baseline.

    Args:
        ask: The judge: `Endpoint(...).ask`.
        instructions: Instruction of each sample, by its name.
        ours: The cell's samples, with `sample` and `response`.
        theirs: The baseline's.

    Returns:
        Samples with `sample`, `cluster` and the columns of `METRICS`.

    Raises:
        InputError: The cells have other samples, or no responses.
    """
    import pandas as pd

    if "response" not in ours or "response" not in theirs:
        raise InputError("the samples hold no responses", "the task's data may not be published: judge while it runs")
    base = theirs.set_index("sample")["response"]
    if set(ours["sample"]) != set(base.index) or not set(base.index) <= set(instructions):
        raise InputError("the two cells and the instructions have different samples")
    rows = [
        {"sample": name, "cluster": cluster, **preference(ask, instructions[name], str(text), str(base[name]))}
        for name, cluster, text in zip(
            ours["sample"], ours.get("cluster", ours["sample"]), ours["response"], strict=True
        )
    ]
    return pd.DataFrame(rows)
