"""The largest logit of each term over a text's positions, without all logits in memory at once.

On a processor most of SPLADE's time goes into writing and reading logits, positions by vocabulary, of which only the
maximum over positions is wanted. Text by text and a part of the vocabulary at a time, they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_TERMS_AT_ONCE = 2048


def detached_head(model: Any) -> nn.Linear | None:
    """Take the last layer, hidden states to logits, off a masked language model, which then returns hidden states.

    Returns:
        The layer; None, and the model as it was, where the logits are not that layer's output alone.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    name = next(name for name, module in model.named_modules() if module is head)
    ids = torch.tensor([[0, 1]], device=head.weight.device)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        model.set_submodule(name, nn.Identity())
        try:
            same = torch.equal(head(model(input_ids=ids).logits), expected)
        except RuntimeError:  # something is added to the logits that does not fit hidden states
            same = False
    if same:
        return head
    model.set_submodule(name, head)
    return None


def largest_logits(hidden: Tensor, lengths: Sequence[int], head: nn.Linear) -> Tensor:
    """The largest logit of each term over the positions of each text.

    Args:
        hidden: What the head takes, `[texts, positions, hidden]`; padding at the end.
        lengths: Positions of each text.
        head: Hidden states to logits.

    Returns:
        `[texts, terms]`.
    """
    found = torch.empty(len(lengths), head.out_features, dtype=hidden.dtype)
    parts = torch.split(found, _TERMS_AT_ONCE, dim=1)
    for part, weight in zip(parts, torch.split(head.weight, _TERMS_AT_ONCE), strict=True):
        for text, length in enumerate(lengths):
            torch.amax(hidden[text, :length] @ weight.T, dim=0, out=part[text])
    return found if head.bias is None else found.add_(head.bias)
