"""Ranking losses, and what keeps vectors sparse; every function takes weights over the vocabulary, `[texts, terms]`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsebench.retrieval.training.settings import Regulariser


def contrastive(scores: Tensor, answers: Tensor, allowed: Tensor) -> Tensor:
    """Cross entropy of each query's own document among the batch's.

    Args:
        scores: `[queries, documents]`.
        answers: Place of each query's document, `int64 [queries]`.
        allowed: Which documents may stand against a query's own: not those that answer it too, `bool`, as `scores`.
    """
    return functional.cross_entropy(scores.masked_fill(~allowed, float("-inf")), answers)


def distillation(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the teacher's distribution over the batch's documents from the student's."""
    student = functional.log_softmax(scores, dim=1)
    return functional.kl_div(
        student, functional.log_softmax(teacher / temperature, dim=1), reduction="batchmean", log_target=True
    )


def penalty(weights: Tensor, rule: Regulariser, idf: Tensor) -> Tensor:
    """What the weights of one side cost, before it is multiplied with its strength.

    L1 is the mean over texts of the sum of weights; FLOPS the sum over terms of the squared mean weight; the IDF-aware
    form divides each term's mean by its inverse document frequency, so that frequent terms cost more. With a threshold
    only texts with more terms than that count, in a mean over all texts.

    Args:
        weights: `[texts, terms]`, none negative.
        rule: Which penalty, and its threshold.
        idf: Inverse document frequency of each term, `[terms]`, all above 0.
    """
    if rule.kind == "none":
        return weights.new_zeros(())
    if rule.threshold is not None:
        weights = weights * ((weights > 0).sum(1, keepdim=True) > rule.threshold)
    if rule.kind == "l1":
        return weights.sum(1).mean()
    mean = weights.mean(0)
    if rule.kind == "idf-flops":
        mean = mean / idf
    return (mean**2).sum()


def strength(step: int, steps: int, ramp: float) -> float:
    """How much of its full strength a penalty has: it grows with the square of the step, then stays at 1.

    >>> [strength(step, 100, 0.5) for step in (0, 25, 50, 99)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, step / (steps * ramp)) ** 2


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate: a linear rise, then a linear fall to 0.

    >>> [rate(step, 10, 0.2) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rise = round(steps * warmup)
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def products(queries: Tensor, documents: Tensor) -> Tensor:
    """Scores of all documents for all queries, `[queries, documents]`."""
    return torch.mm(queries, documents.T)
