"""Attention of any architecture: the projections that read the residual stream, and the one that reads the heads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

CLASS = re.compile("attention|attn", re.IGNORECASE)
"""Names of the classes of attention modules in transformers."""
QUERY = re.compile(r"w?q(_proj|_lin|_a_proj)?|query(_proj)?")
OUTPUT = re.compile(r"w?o(_proj|_lin)?|out(_proj|_lin)?|c_proj|dense")
KEY = re.compile(r"w?k(_proj|_lin)?|key(_proj)?")


@dataclass(frozen=True)
class Attention:
    """The linear layers of one attention module.

    Attributes:
        inputs: Those that read what the module is given, in their order in it.
        output: The one that reads the heads.
    """

    inputs: tuple[LinearSite, ...]
    output: LinearSite

    @property
    def query(self) -> LinearSite | None:
        """The projection of queries alone; None where one matrix gives queries, keys and values."""
        return next((site for site in self.inputs if QUERY.fullmatch(site.role)), None)

    @property
    def key(self) -> LinearSite:
        """The projection of keys, or the first projection where one matrix gives more than keys."""
        return next((site for site in self.inputs if KEY.fullmatch(site.role)), self.inputs[0])


def attentions(system: CausalLM) -> list[Attention]:
    """The attention modules of the decoder blocks: those that are called so and hold two linear layers or more.

    The one that is called so, or else the last of these, reads the heads; the others are inputs where they are as wide
    as the first of them.
    """
    sites = {id(site.module): site for site in system.linears}
    found = []
    for block in system.blocks:
        for holder in block.modules():
            linears = [sites[id(child)] for child in holder.children() if id(child) in sites]
            if CLASS.search(type(holder).__name__) and len(linears) >= 2:
                output = next((site for site in linears if OUTPUT.fullmatch(site.role)), linears[-1])
                others = [site for site in linears if site is not output]
                wide = others[0].weight.shape[1]
                found.append(Attention(tuple(site for site in others if site.weight.shape[1] == wide), output))
    return found
