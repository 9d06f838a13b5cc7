"""From evidence to one of four verdicts, and a sentence that says why."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Verdict = Literal["improved", "non-inferior", "regressed", "inconclusive"]


class Evidence(NamedTuple):
    """What a verdict rests on; losses and gains are in the metric's units, positive.

    A tuple, because corrections make several of every comparison, and a table may hold a million.

    Attributes:
        n: Samples compared.
        clusters: Clusters that they fall into.
        unpaired: Samples that only one of the two systems has a value for.
        finite: Whether both values are finite.
        loss: How much worse sparse is; negative for a gain.
        loss_bound: Its one-sided upper confidence bound.
        p_regression: One-sided p value against a loss.
        p_improvement: One-sided p value against a gain.
        alpha: Level of each one-sided test.
        margin: The acceptable loss; None where none was declared.
        mde: The smallest loss that these samples can show.
        required_n: Samples for which `mde` would be the margin.
        noise: The change between two runs of the baseline; None where unknown.
        above_chance: Whether the baseline is above chance; None where the metric has no chance level.
        room: Whether the baseline is above chance by more than the margin, so that a full collapse would be seen.
    """

    n: int
    clusters: int
    unpaired: int
    finite: bool
    loss: float
    loss_bound: float
    p_regression: float
    p_improvement: float
    alpha: float
    margin: float | None
    mde: float
    required_n: int | None
    noise: float | None
    above_chance: bool | None
    room: bool


def decide(evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict and its reason.

    In this order: nothing can be said (no samples, no signal, one cluster); `improved` when a gain is significant;
    `non-inferior` when the bound of the loss is below the margin; `regressed` when a loss is significant; otherwise
    `inconclusive`. A change no larger than the A/A noise is neither a gain nor a loss, and whatever stands against
    non-inferiority (`_obstacle`) is the reason of an inconclusive verdict. A good verdict needs every sample.
    """
    e = evidence
    if e.n == 0:
        return "inconclusive", "no sample has a value with both systems"
    if not e.finite:
        worse = e.loss == math.inf
        return (
            "regressed" if worse else "inconclusive"
        ), f"the {'sparse' if worse else 'baseline'} value is not finite"
    if e.above_chance is False:
        return "inconclusive", "no signal: the baseline is not above chance"
    if e.clusters < 2:
        return "inconclusive", "all samples fall into one cluster, so their spread says nothing"
    beyond_noise = e.noise is None or abs(e.loss) > e.noise
    lost = e.p_regression <= e.alpha and e.loss > 0
    if e.p_improvement <= e.alpha and e.loss < 0 and beyond_noise and not e.unpaired:
        return "improved", f"the gain is significant (p = {e.p_improvement:.2g})"
    obstacle = _obstacle(e)
    if obstacle is None:
        real = ", though the loss is real" if lost else ""
        return "non-inferior", f"the loss is below {e.loss_bound:.3g}, the margin is {e.margin:.3g}{real}"
    if lost and beyond_noise:
        against = "" if e.margin is None else f"; its bound is {e.loss_bound:.3g}, the margin {e.margin:.3g}"
        return "regressed", f"the loss of {e.loss:.3g} is significant (p = {e.p_regression:.2g}){against}"
    return "inconclusive", obstacle


def _obstacle(e: Evidence) -> str | None:
    """What stands against calling it non-inferior; None when nothing does."""
    if e.unpaired:
        return f"samples with a value from one system only: {e.unpaired}"
    if e.margin is None:
        return f"no margin was declared; the smallest loss that {e.n} samples show is {e.mde:.3g}"
    if e.noise is not None and e.margin < 2 * e.noise:
        return f"the margin {e.margin:.3g} is below twice the A/A noise {e.noise:.3g}"
    if not e.room:
        return f"the baseline is above chance by less than the margin {e.margin:.3g}, so a collapse could hide in it"
    if e.loss_bound < e.margin:
        return None
    if not e.mde <= e.margin:
        needed = f"; n needed {e.required_n:,}" if e.required_n is not None else ""
        return f"underpowered: minimum detectable effect {e.mde:.3g} exceeds the margin {e.margin:.3g}{needed}"
    return f"undecided: the loss is below {e.loss_bound:.3g}, the margin is {e.margin:.3g}"
