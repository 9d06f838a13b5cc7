"""Claims as sentences, in a small grammar.

    claim    = SUBJECT does [place]
    SUBJECT  = METHOD [at] [BUDGET] [with KNOB=VALUE, ...] { + METHOD ... }
    does     = keeps WHAT within AMOUNT
             | loses (at most | less than | no more than | at least | more than) AMOUNT [of METRIC]
             | improves METRIC [by [at least] AMOUNT]
             | beats SUBJECT [by [at least] AMOUNT] [in METRIC]
             | is within AMOUNT of SUBJECT [in METRIC]
             | costs (at most | at least) N% of the [dense] (FLOPs | bytes)
             | has (at least | at most) N% sparsity
    place    = [on (TASK {and TASK} | all tasks)] [for MODEL]
    BUDGET   = N% | n:m | N tokens | N terms | N bits | N depth | N coverage
    AMOUNT   = N% | N points

`N%` of a metric is relative to the baseline's value; for a perplexity 5 % is a ratio of 1.05. A point is a hundredth of
a metric that is a share (accuracy, nDCG). Without a metric the task's headline metrics are meant, each of them; without
a task every task on which the subject was measured; without knobs every configuration. A claim about several holds
where each of them does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from sparsebench.budget import Budget
from sparsebench.errors import InputError

FORMS = (
    "wanda 50% loses at most 5% of perplexity on wikitext2-perplexity",
    "wanda 2:4 keeps qa-wikidata within 5%",
    "wanda 50% beats magnitude 50% on all tasks",
    "teal 40% with scope=all is within 2 points of dense on qa-wikidata",
    "wanda 50% costs at most 70% of the dense FLOPs",
)
HINT = "for instance: " + "; ".join(f'"{form}"' for form in FORMS)
VERBS = ("keeps", "loses", "improves", "beats", "is", "costs", "has")
KINDS = ("tokens", "terms", "bits", "depth", "coverage")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")
_PATTERN = re.compile(r"[0-9]+:[0-9]+")
_KNOB = re.compile(r"([A-Za-z_]\w*)=(\S+)")


@dataclass(frozen=True)
class Member:
    """One method at one budget.

    Attributes:
        method: Its id.
        budget: How sparse; None: any.
        knobs: Knobs that are named, as text.
    """

    method: str
    budget: Budget | None = None
    knobs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        knobs = f" with {', '.join(f'{k}={v}' for k, v in self.knobs)}" if self.knobs else ""
        return self.method + (f" {self.budget.label}" if self.budget else "") + knobs


@dataclass(frozen=True)
class Claim:
    """What a sentence says.

    Attributes:
        sentence: As it was given.
        subject: The stack that it is about.
        measure: `loss` of a metric, `flops`, `bytes` or `sparsity`.
        direction: Whether the measure is said to be `below` or `above` the limit.
        limit: A fraction, or points where `points`; for a loss negative where a gain is claimed.
        points: Whether the limit is in points.
        what: Metric or task that the verb names; empty for the headline metrics.
        against: What it is compared with; None: its own baseline.
        tasks: Tasks; empty for all.
        model: Part of the model's name; empty for any.
    """

    sentence: str
    subject: tuple[Member, ...]
    measure: Literal["loss", "flops", "bytes", "sparsity"]
    direction: Literal["below", "above"]
    limit: float
    points: bool = False
    what: str = ""
    against: tuple[Member, ...] | None = None
    tasks: tuple[str, ...] = ()
    model: str = ""


def parse(sentence: str) -> Claim:
    """Read a claim.

    Raises:
        InputError: It is no sentence of the grammar; the message says what was expected where.
    """
    return _Reader(sentence).claim()


class _Reader:
    """The words of a sentence, and how far they have been read."""

    def __init__(self, sentence: str) -> None:
        self.sentence = " ".join(sentence.split())
        text = re.sub(r"(?<=[0-9])\s+%", "%", self.sentence).rstrip(".!")
        self.words = re.sub(r"\s*,\s*", " , ", text).split()
        self.at = 0

    def claim(self) -> Claim:
        subject = self.stack()
        verb = self.word(*VERBS)
        claim: Claim = getattr(self, f"_{verb}")(subject)
        tasks, model = self.place()
        if self.at < len(self.words):
            self.fail("the end of the sentence, or `on TASK`, `for MODEL`")
        return Claim(**{**claim.__dict__, "tasks": tasks, "model": model})

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def fail(self, expected: str) -> NoReturn:
        before = " ".join(self.words[: self.at])
        place = f"after {before!r}" if before else "at the start"
        found = f"there is {self.peek()!r}" if self.peek() else "the sentence ends"
        raise InputError(f"claim {self.sentence!r}: {place} {found}; expected {expected}", HINT)

    def accept(self, *words: str) -> bool:
        """Read these words, if they come next."""
        following = [word.lower() for word in self.words[self.at : self.at + len(words)]]
        if following != [word.lower() for word in words]:
            return False
        self.at += len(words)
        return True

    def word(self, *choices: str) -> str:
        for choice in choices:
            if self.accept(*choice.split()):
                return choice
        self.fail(" or ".join(f"`{choice}`" for choice in choices))

    def name(self, what: str) -> str:
        if not self.peek() or self.peek() == ",":
            self.fail(what)
        self.at += 1
        return self.words[self.at - 1]

    def stack(self) -> tuple[Member, ...]:
        members = [self.member()]
        while self.accept("+"):
            members.append(self.member())
        return tuple(members)

    def member(self) -> Member:
        if self.peek().lower() in VERBS:
            self.fail("a method")
        method = self.name("a method")
        self.accept("at")
        return Member(method, self.budget(), self.knobs())

    def budget(self) -> Budget | None:
        word = self.peek()
        if percent := _PERCENT.fullmatch(word):
            self.at += 1
            self.accept("sparsity")
            return Budget("sparsity", float(percent[1]) / 100)
        if _PATTERN.fullmatch(word):
            self.at += 1
            return Budget("pattern", word)
        if _NUMBER.fullmatch(word):
            self.at += 1
            kind = self.word(*KINDS)
            return Budget(kind, float(word))  # type: ignore[arg-type]
        return None

    def knobs(self) -> tuple[tuple[str, str], ...]:
        if not self.accept("with"):
            return ()
        found = []
        while True:
            match = _KNOB.fullmatch(self.peek())
            if not match:
                self.fail("KNOB=VALUE")
            self.at += 1
            found.append((match[1], match[2]))
            if not self.accept(","):
                return tuple(found)

    def amount(self) -> tuple[float, bool]:
        """A limit, and whether it is in points."""
        word = self.peek()
        if percent := _PERCENT.fullmatch(word):
            self.at += 1
            return float(percent[1]) / 100, False
        if _NUMBER.fullmatch(word):
            self.at += 1
            self.word("points", "point")
            return float(word), True
        self.fail("an amount: `5%` or `2 points`")

    def share(self) -> float:
        percent = _PERCENT.fullmatch(self.peek())
        if not percent:
            self.fail("a percentage")
        self.at += 1
        return float(percent[1]) / 100

    def metric(self, *before: str) -> str:
        """`of METRIC`, where it comes next; a metric may have several words."""
        if not self.accept(*before):
            return ""
        words = []
        while self.peek() and self.peek().lower() not in ("on", "for", "by", "within"):
            words.append(self.name("a metric"))
        if not words:
            self.fail("a metric")
        return " ".join(words)

    def place(self) -> tuple[tuple[str, ...], str]:
        tasks: list[str] = []
        if self.accept("on") and not (self.accept("all", "tasks") or self.accept("every", "task")):
            tasks.append(self.name("a task"))
            while self.accept("and") or self.accept(","):
                tasks.append(self.name("a task"))
        model = self.name("a model") if self.accept("for") else ""
        return tuple(tasks), model

    def _keeps(self, subject: tuple[Member, ...]) -> Claim:
        words = []
        while self.peek() and self.peek().lower() != "within":
            words.append(self.name("a metric or a task"))
        if not words:
            self.fail("a metric or a task")
        self.word("within")
        limit, points = self.amount()
        what = " ".join(words)
        return Claim(self.sentence, subject, "loss", "below", limit, points, "" if what == "quality" else what)

    def _loses(self, subject: tuple[Member, ...]) -> Claim:
        how = self.word("at most", "less than", "no more than", "at least", "more than")
        limit, points = self.amount()
        direction: Literal["below", "above"] = "above" if how in ("at least", "more than") else "below"
        return Claim(self.sentence, subject, "loss", direction, limit, points, self.metric("of"))

    def _improves(self, subject: tuple[Member, ...]) -> Claim:
        what = self.metric()
        limit, points = self.by()
        return Claim(self.sentence, subject, "loss", "below", 0.0 - limit, points, what)

    def _beats(self, subject: tuple[Member, ...]) -> Claim:
        against = self.stack()
        limit, points = self.by()
        return Claim(self.sentence, subject, "loss", "below", 0.0 - limit, points, self.metric("in"), against)

    def by(self) -> tuple[float, bool]:
        if not self.accept("by"):
            return 0.0, False
        self.accept("at", "least") or self.accept("more", "than")
        return self.amount()

    def _is(self, subject: tuple[Member, ...]) -> Claim:
        self.word("within")
        limit, points = self.amount()
        self.word("of")
        against = self.stack()
        return Claim(self.sentence, subject, "loss", "below", limit, points, self.metric("in"), against)

    def _costs(self, subject: tuple[Member, ...]) -> Claim:
        how = self.word("at most", "less than", "at least", "more than")
        share = self.share()
        self.accept("of")
        self.accept("the")
        self.accept("dense")
        measure: Literal["flops", "bytes"] = "flops" if self.word("FLOPs", "bytes") == "FLOPs" else "bytes"
        return Claim(self.sentence, subject, measure, "below" if how in ("at most", "less than") else "above", share)

    def _has(self, subject: tuple[Member, ...]) -> Claim:
        how = self.word("at least", "at most")
        share = self.share()
        self.word("sparsity")
        return Claim(self.sentence, subject, "sparsity", "above" if how == "at least" else "below", share)


def described(members: Sequence[Member]) -> str:
    """A stack as printed: `wanda 50% + streaming-llm 256 tokens`."""
    return " + ".join(map(str, members))
