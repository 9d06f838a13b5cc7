"""Retrieval systems: an encoder, or none for lexical search, that a retrieval adapter turns into a retriever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sparsebench.errors import InputError
from sparsebench.systems.base import System

if TYPE_CHECKING:
    from sparsebench.retrieval.collection import Collection
    from sparsebench.retrieval.run import Run
    from sparsebench.systems.imprint import Imprint


class EncoderSystem(System):
    """What a retriever is built on: a sparse encoder, a dense encoder, or nothing (`lexical`).

    Vectors of a collection are computed once and kept for all budgets, for as long as the system is loaded.

    Args:
        kind: `sparse-encoder`, `dense-encoder` or `lexical`.
        ref: Model reference.
        fingerprint: Hash of the weights.
        folder: The model's files; None for `lexical`.
        dtype: Precision of the model.
        device: Where it runs.
    """

    def __init__(
        self, kind: str, ref: str, fingerprint: str, folder: Path | None, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.kind = kind
        self.ref = ref
        self.fingerprint = fingerprint
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self.memory: dict[Any, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Facts for the record."""
        return {**super().describe(), "dtype": self.dtype, "base_precision": self.dtype or "none"}

    @cached_property
    def encoder(self) -> Any:
        """The loaded encoder.

        Raises:
            InputError: A lexical system has none.
        """
        if self.folder is None:
            raise InputError("a lexical system has no encoder", "name a sparse-encoder or a dense-encoder")
        from sparsebench.retrieval.encoders import DenseEncoder, SpladeEncoder
        from sparsebench.retrieval.grid_encoder import GridEncoder, is_grid_cell
        from sparsebench.systems.loading import quiet

        with quiet():
            if self.kind == "sparse-encoder" and is_grid_cell(self.folder):
                return GridEncoder(self.folder, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]
            if self.kind == "sparse-encoder":
                return SpladeEncoder(self.folder, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]
            return DenseEncoder(self.folder, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]

    def imprint(self) -> Imprint | None:
        """See `System.imprint`: of the encoder, once it is loaded."""
        if "encoder" not in vars(self):
            return None
        import torch

        from sparsebench.systems.imprint import Imprint

        models = [part for part in vars(self.encoder).values() if isinstance(part, torch.nn.Module)]
        return Imprint.of(torch.nn.ModuleList(models))

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time for this key."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


@dataclass
class Retrieved:
    """What a retriever found, and what that took.

    Attributes:
        run: Ranked documents by query.
        counted: Counts and sizes for the record; see `realised`.
        facts: Analyser, terms, truncated texts and so on.
        by_query: Values of each query of the run that the judgements do not give, `[queries]`, by name.
    """

    run: Run
    counted: dict[str, Any]
    facts: dict[str, Any]
    by_query: dict[str, Any] = field(default_factory=dict)


class Retriever(Protocol):
    """What a retrieval task asks."""

    def retrieve(self, collection: Collection, depth: int) -> Retrieved:
        """The best `depth` documents of each query."""
        ...


def load_retrieval_system(kind: str, ref: str, dtype: str, device: str) -> EncoderSystem:
    """A retrieval system from its specification."""
    if kind == "lexical":
        return EncoderSystem(kind, "lexical", "", None, "")
    from sparsebench.systems.loading import model_files

    files = model_files(ref)
    return EncoderSystem(kind, files.ref, files.fingerprint, files.folder, dtype, device)
