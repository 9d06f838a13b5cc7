"""What is known of the keys of sequences that grow token by token, so that each key is looked at once.

It lies in the sequences' own states and goes with them. Whoever writes keys anew, as a correction does, forgets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from sparsebench.engine.attention import AttentionView

GROWN, NAME = "what is known of keys", "who knows it"
"""Where it stands in a state; the second tells sequences apart without holding on to their states."""


@dataclass(frozen=True)
class Grown:
    """What is known of the keys of some rows.

    Attributes:
        sequences: What tells the rows' sequences apart.
        lengths: Keys of each row, int64 [rows], on the host.
        tensors: What is known, each [rows, ...].
    """

    sequences: list[object]
    lengths: np.ndarray
    tensors: dict[str, torch.Tensor]


def recall(view: AttentionView, name: object) -> dict[str, torch.Tensor] | None:
    """What was remembered under a name when each row of a step had one key fewer, for these rows in their order.

    None where not all of that is known, and for views that are no step of known sequences.
    """
    if view.query.shape[2] != 1 or not view.states:
        return None
    known = view.states[0][-1].get(GROWN, {}).get((name, view.layer))
    if known is None:
        return None
    places = {id(sequence): place for place, sequence in enumerate(known.sequences)}
    found = [places.get(id(states[-1].get(NAME)), -1) for states in view.states]
    if -1 in found or (known.lengths[found] + 1 != view.geometry.lengths).any():
        return None
    tensors: dict[str, torch.Tensor] = known.tensors
    if found == list(range(len(known.sequences))):
        return tensors
    rows = torch.tensor(found, device=view.query.device)
    return {key: tensor[rows] for key, tensor in tensors.items()}


def remember(view: AttentionView, name: object, tensors: dict[str, torch.Tensor]) -> None:
    """Remember something of the keys of a step's rows; nothing for views that are no step of known sequences."""
    if view.query.shape[2] != 1 or not view.states:
        return
    own = [states[-1] for states in view.states]
    known = Grown([state.setdefault(NAME, object()) for state in own], view.geometry.lengths, tensors)
    for state in own:
        state.setdefault(GROWN, {})[name, view.layer] = known


def forget(states: Iterable[dict[Any, Any]]) -> None:
    """Forget what is known of sequences whose keys were written anew."""
    for state in states:
        state.pop(GROWN, None)
