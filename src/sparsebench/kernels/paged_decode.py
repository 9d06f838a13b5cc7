"""Decode attention that reads only selected pages of the cache (Quest, Tang et al. 2024), group-shared.

Keys and values lie in pages of a pool; a page table says which pages a sequence has. An index holds the smallest and
the largest value of each channel in each page. A step is four launches, all fit for a CUDA graph:

1. a score for each (key-value head, page), an upper bound of its logits summed over the group's query heads. Since
   max(q a, q b) = max(q, 0) b + min(q, 0) a for a <= b, the group needs one product with the sums of the positive and
   of the negative parts of its queries;
2. the exact top-k, with the last page, which the index need not know yet;
3. attention over the chosen pages, each program a share of them (flash decoding, Dao et al. 2023);
4. the shares combined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparsebench.errors import InputError
from sparsebench.kernels.early import begin, launch
from sparsebench.kernels.selection import select


@triton.jit
def _score(
    q, bounds, table, lengths, scores, pages, GROUP: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr,
    PAGE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    head = tl.program_id(0)  # heads of a page lie side by side: read together they come from memory in one run
    sequence = tl.program_id(2)
    row = sequence * HEADS + head
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < pages) & (at * PAGE < tl.load(lengths + sequence))
    page = tl.load(table + sequence * pages + at, mask=inside, other=0).to(tl.int64)
    d = tl.arange(0, D)
    g = tl.arange(0, WIDE)
    queries = tl.load(q + (row * GROUP + g)[:, None] * D + d[None, :], mask=(g < GROUP)[:, None], other=0.0)
    queries = queries.to(tl.float32)
    up = tl.sum(tl.maximum(queries, 0.0), 0)
    down = tl.sum(tl.minimum(queries, 0.0), 0)
    where = bounds + ((page * HEADS + head) * 2 * D)[:, None] + d[None, :]
    low = tl.load(where, mask=inside[:, None], other=0.0).to(tl.float32)
    high = tl.load(where + D, mask=inside[:, None], other=0.0).to(tl.float32)
    score = tl.sum(high * up[None, :] + low * down[None, :], 1)
    tl.store(scores + row.to(tl.int64) * pages + at, score, mask=inside)


@triton.jit
def _attend(
    q, keys, values, table, chosen, counts, lengths, part, extent, width, pages, scale, GROUP: tl.constexpr,
    WIDE: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    split = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    row = sequence * HEADS + head
    count = tl.minimum(tl.load(counts + row), width)
    length = tl.load(lengths + sequence)
    share = tl.cdiv(count, SPLITS)
    first = split * share
    end = tl.minimum(first + share, count)
    d = tl.arange(0, D)
    g = tl.arange(0, WIDE)
    queries = tl.load(q + (row * GROUP + g)[:, None] * D + d[None, :], mask=(g < GROUP)[:, None], other=0.0)
    token = tl.arange(0, TILE)
    within = token % PAGE
    filled = length - ((length - 1) // PAGE) * PAGE  # tokens of the last page
    best = tl.full([WIDE], float("-inf"), tl.float32)
    total = tl.zeros([WIDE], tl.float32)
    acc = tl.zeros([WIDE, D], tl.float32)
    for i in tl.range(first, end, TILE // PAGE, num_stages=STAGES):
        slot = i + token // PAGE
        inside = (slot < end) & ((slot < count - 1) | (within < filled))
        place = tl.load(chosen + row.to(tl.int64) * width + slot, mask=slot < end, other=0)
        page = tl.load(table + sequence * pages + place, mask=slot < end, other=0).to(tl.int64)
        where = ((page * HEADS + head) * PAGE + within)[:, None] * D + d[None, :]
        k = tl.load(keys + where, mask=inside[:, None], other=0.0)
        v = tl.load(values + where, mask=inside[:, None], other=0.0)
        logits = tl.dot(queries, tl.trans(k)) * scale
        logits = tl.where(inside[None, :], logits, float("-inf"))
        now = tl.maximum(best, tl.max(logits, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        p = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(best - shift)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None])
        best = now
    place = (row * SPLITS + split) * GROUP + g
    tl.store(part + place.to(tl.int64)[:, None] * D + d[None, :], acc, mask=(g < GROUP)[:, None])
    tl.store(extent + place * 2, best, mask=g < GROUP)
    tl.store(extent + place * 2 + 1, total, mask=g < GROUP)


@triton.jit
def _combine(
    part, extent, out, GROUP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    begin(EARLY)
    head = tl.program_id(0)
    row = head // GROUP
    place = (row * SPLITS + tl.arange(0, SPLITS)) * GROUP + head % GROUP
    best = tl.load(extent + place * 2)
    total = tl.load(extent + place * 2 + 1)
    weight = tl.exp2(best - tl.max(best, 0))  # a share without pages has a maximum of minus infinity: weight zero
    d = tl.arange(0, D)
    acc = tl.load(part + place.to(tl.int64)[:, None] * D + d[None, :])
    result = tl.sum(acc * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + head * D + d, result.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Layout:
    """How the kernels are laid out; never changes what is computed.

    Attributes:
        splits: Programs that share one key-value head's pages; a power of two.
        tile: Tokens read at once; a multiple of the page.
        warps: Warps of an attention program.
        stages: Depth of its software pipeline.
        scored: Pages that one scoring program reads.
        scoring: Warps of a scoring program.
        selecting: Warps of a selecting program.
        early: Whether kernels are launched before the one ahead has ended.
    """

    splits: int = 32
    tile: int = 64
    warps: int = 4
    stages: int = 2
    scored: int = 8
    scoring: int = 1
    selecting: int = 8
    early: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class PagedCache:
    """Keys and values in pages, with the index of each page's bounds.

    Attributes:
        keys: `[pool, kv_heads, page, head_dim]`, contiguous: the kernels address them by shape alone.
        values: As `keys`.
        bounds: Smallest and largest value of each channel, `[pool, kv_heads, 2, head_dim]`, contiguous. That of a
            sequence's last page may be out of date: it is always chosen.
        table: Pages of each sequence in their order, `[batch, pages]`, int32, contiguous.
        lengths: Tokens of each sequence, int32, `[batch]`; at least 1, at most what its pages hold.

    Raises:
        InputError: Tensors that are not so; looked at once, here, since a kernel cannot say it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor

    def __post_init__(self) -> None:
        pool, heads, page, dim = self.keys.shape
        batch, pages = self.table.shape
        tensors = vars(self)
        shapes = {
            "values": (pool, heads, page, dim),
            "bounds": (pool, heads, 2, dim),
            "table": (batch, pages),
            "lengths": (batch,),
        }
        for name, shape in shapes.items():
            if tensors[name].shape != shape:
                raise InputError(f"{name} of a paged cache are {tuple(tensors[name].shape)}, not {shape}")
        for name, tensor in tensors.items():
            if not tensor.is_contiguous():
                raise InputError(f"{name} of a paged cache must be contiguous", "call contiguous() first")
        if self.table.dtype != torch.int32 or self.lengths.dtype != torch.int32:
            raise InputError("the table and the lengths of a paged cache must be int32")
        if int(self.table.min()) < 0 or int(self.table.max()) >= pool:
            raise InputError(f"the table names a page outside the pool of {pool}")
        if int(self.lengths.min()) < 1 or int(self.lengths.max()) > pages * page:
            raise InputError(f"a sequence of a paged cache has 1 to {pages * page} tokens")

    @classmethod
    def of(cls, k: torch.Tensor, v: torch.Tensor, page: int, table: torch.Tensor | None = None) -> PagedCache:
        """A cache of whole sequences `[batch, kv_heads, tokens, head_dim]`; `table` places their pages in the pool."""
        batch, heads, tokens, dim = k.shape
        pages = -(-tokens // page)
        if table is None:
            table = torch.arange(batch * pages, dtype=torch.int32, device=k.device).view(batch, pages)

        def paged(x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.pad(x, (0, 0, 0, pages * page - tokens))
            rows = x.view(batch, heads, pages, page, dim).transpose(1, 2).reshape(batch * pages, heads, page, dim)
            # With one sequence `rows` is a view in another order, which empty_like would keep.
            pool = torch.empty_like(rows, memory_format=torch.contiguous_format)
            pool[table.flatten().long()] = rows
            return pool

        keys = paged(k)
        lengths = torch.full((batch,), tokens, dtype=torch.int32, device=k.device)
        return cls(keys, paged(v), torch.stack([keys.amin(2), keys.amax(2)], 2), table, lengths)


class PagedDecode:
    """A decode step over a cache's best pages, with its scratch memory: call it as often as wanted, in a graph too.

    Args:
        cache: The cache.
        heads: Query heads.
        budget: Tokens to read; a multiple of the page. The last page counts as a full one.
        layout: How the kernels are laid out.

    Raises:
        InputError: Heads that are no whole groups, or a budget of less than a page.
    """

    def __init__(self, cache: PagedCache, heads: int, budget: int, layout: Layout = Layout()) -> None:
        _, self.kv_heads, self.page, self.dim = cache.keys.shape
        self.batch, self.pages = cache.table.shape
        self.heads, self.cache, self.layout = heads, cache, layout
        self.group = heads // self.kv_heads
        self.width = min(budget // self.page, self.pages)
        if heads % self.kv_heads or not self.width:
            raise InputError(f"{heads} heads and a budget of {budget} do not fit keys {tuple(cache.keys.shape)}")
        device = cache.keys.device

        def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        rows = (self.batch, self.kv_heads)
        self.scores = scratch(*rows, self.pages)
        self.chosen = scratch(*rows, self.width, dtype=torch.int32)
        self.counts = scratch(*rows, dtype=torch.int32)
        self.keep = torch.full((self.batch,), self.width, dtype=torch.int32, device=device)
        self.valid = -(-cache.lengths // self.page)
        self.part = scratch(*rows, layout.splits, self.group, self.dim)
        self.extent = scratch(*rows, layout.splits, self.group, 2)

    def _fits(self, *tensors: torch.Tensor) -> None:
        shape = (self.batch, self.heads, self.dim)
        for tensor in tensors:
            if tensor.shape != shape or not tensor.is_contiguous():
                raise InputError(f"queries and outputs must be {shape} and contiguous, not {tuple(tensor.shape)}")

    def choose(self, q: torch.Tensor) -> None:
        """Score all pages for `q`, `[batch, heads, head_dim]`, and list the best."""
        self._fits(q)
        cache, layout = self.cache, self.layout
        _score[(self.kv_heads, triton.cdiv(self.pages, layout.scored), self.batch)](
            q, cache.bounds, cache.table, cache.lengths, self.scores, self.pages, GROUP=self.group,
            WIDE=triton.next_power_of_2(self.group), D=self.dim, PAGE=self.page, HEADS=self.kv_heads,
            BLOCK=layout.scored, num_warps=layout.scoring, **launch(layout.early),
        )  # fmt: skip
        select(
            self.scores, self.valid, self.keep, self.width, repeat=True, local=1,
            out=(self.chosen, self.counts), warps=layout.selecting, early=layout.early,
        )  # fmt: skip

    def choose_all(self) -> None:
        """List every page, for a dense step with the same kernel.

        Raises:
            InputError: The budget does not cover the cache.
        """
        if self.width < self.pages:
            raise InputError(f"a budget of {self.width} pages does not cover {self.pages}")
        self.chosen.copy_(torch.arange(self.pages, dtype=torch.int32, device=self.chosen.device).expand_as(self.chosen))
        self.counts.copy_(self.valid[:, None].expand_as(self.counts))

    def attend(self, q: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Attention of `q` over the pages that were chosen last, into `out`, `[batch, heads, head_dim]`."""
        self._fits(q, out)
        cache, layout = self.cache, self.layout
        shape = {"GROUP": self.group, "D": self.dim, "SPLITS": layout.splits, **launch(layout.early)}
        _attend[(layout.splits, self.kv_heads, self.batch)](
            q, cache.keys, cache.values, cache.table, self.chosen, self.counts, cache.lengths, self.part, self.extent,
            self.width, self.pages, math.log2(math.e) / math.sqrt(self.dim),
            WIDE=max(16, triton.next_power_of_2(self.group)), PAGE=self.page, HEADS=self.kv_heads,
            TILE=layout.tile, STAGES=layout.stages, num_warps=layout.warps, **shape,
        )  # fmt: skip
        _combine[(self.batch * self.heads,)](self.part, self.extent, out, num_warps=4, **shape)
        return out

    def __call__(self, q: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """One step: selection, then attention."""
        self.choose(q)
        return self.attend(q, out)
