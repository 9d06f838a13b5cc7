"""Bounds on the scores of pages of keys, from the least and the greatest entries of each."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from sparsebench.engine.attention import AttentionView
from sparsebench.engine.grown import recall, remember

ROOM = 16
"""Pages by which what is known of them grows."""


def page_bounds(view: AttentionView, size: int) -> torch.Tensor:
    """The highest q.k that a key within a page's least and greatest entries could have, [rows, heads, queries, pages].

    A last page that is not full has no bound (infinity): only queries whose own key lies in it see it, and those read
    it anyway. Nor has a page beyond a row's end a meaning; no query sees it.
    """
    rows, kv_heads, keys, dim = view.key.shape
    full = keys // size
    least, most = (x[:, :, :full].float() for x in extremes(view, size))
    query = view.query.float().reshape(rows, kv_heads, -1, dim)
    bounds = query.clamp(min=0) @ most.transpose(-1, -2) + query.clamp(max=0) @ least.transpose(-1, -2)
    bounds = bounds.reshape(rows, view.query.shape[1], view.query.shape[2], full)
    return pad(bounds, (0, -(-keys // size) - full), value=torch.inf)


def extremes(view: AttentionView, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest entries of each full page, [rows, kv_heads, pages or more, dim].

    Of sequences that grow step by step those of a page are found once, when it is full.
    """
    name, full = ("extremes of pages", size), view.key.shape[2] // size
    known = recall(view, name)
    if known is None:
        pages = view.key[:, :, : full * size].reshape(*view.key.shape[:2], full, size, view.key.shape[3])
        known = {"least": pages.amin(dim=3), "most": pages.amax(dim=3)}
    else:
        if (more := full - known["least"].shape[2]) > 0:
            known = {key: pad(x, (0, 0, 0, more + ROOM)) for key, x in known.items()}
        filled = np.flatnonzero(view.geometry.lengths % size == 0)
        if len(filled):
            ends = view.geometry.lengths[filled]
            rows, last = (torch.from_numpy(x).to(view.key.device) for x in (filled, ends // size - 1))
            at = last[:, None] * size + torch.arange(size, device=last.device)
            page = view.key[rows[:, None], :, at]  # [rows, size, kv_heads, dim]
            known["least"][rows, :, last], known["most"][rows, :, last] = page.amin(dim=1), page.amax(dim=1)
    remember(view, name, known)
    return known["least"], known["most"]
