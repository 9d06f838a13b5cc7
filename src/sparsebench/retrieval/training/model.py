"""The cells of the unified framework as a module: texts as token ids to weights over the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sparsebench.errors import InputError
from sparsebench.retrieval.training.settings import GridCell

Side = Literal["query", "document"]
CELL = "sparse_cell.json"
HEADS = "sparse_heads.safetensors"


class LearnedSparseModel(nn.Module):
    """A query and a document encoder that share one masked language model.

    Args:
        backbone: The masked language model.
        cell: Which encoders.
        special: Token ids that are no terms: beginning, end, padding.
    """

    special: Tensor

    def __init__(self, backbone: Any, cell: GridCell, special: list[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.cell = cell
        self.terms = int(backbone.config.vocab_size)
        hidden = int(backbone.config.hidden_size)
        self.heads = nn.ModuleDict(
            {
                side: nn.Linear(hidden, 1)
                for side, kind in (("query", cell.query), ("document", cell.document))
                if kind in ("mlp", "expanded-mlp")
            }
        )
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.ones_(head.bias)  # type: ignore[arg-type]
        self.register_buffer("special", torch.tensor(sorted(special), dtype=torch.long), persistent=False)

    @classmethod
    def from_base(cls, folder: Path, cell: GridCell) -> LearnedSparseModel:
        """A cell over the masked language model of a folder, its other weights new."""
        backbone = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(backbone.float(), cell, tokenizer.all_special_ids)

    @classmethod
    def from_folder(cls, folder: Path) -> LearnedSparseModel:
        """A trained cell, as `save` left it.

        Raises:
            InputError: The folder's heads are not those of its cell.
        """
        cell = GridCell.model_validate(json.loads((folder / CELL).read_text(encoding="utf-8")))
        model = cls.from_base(folder, cell)
        if model.heads:
            try:
                model.heads.load_state_dict(load_file(folder / HEADS))
            except (OSError, RuntimeError) as error:
                raise InputError(f"{folder}: its heads are not those of {cell.name}: {error}") from error
        return model

    def save(self, folder: Path) -> None:
        """Write the cell so that `from_folder` reads it; the tokenizer is not written."""
        self.backbone.save_pretrained(folder)
        (folder / CELL).write_text(json.dumps(self.cell.model_dump()), encoding="utf-8")
        if self.heads:
            save_file({name: tensor.contiguous() for name, tensor in self.heads.state_dict().items()}, folder / HEADS)

    def forward(self, side: Side, ids: Tensor, mask: Tensor) -> Tensor:
        """Weights over the vocabulary.

        Args:
            side: Whose encoder.
            ids: Token ids, `int64 [texts, length]`.
            mask: 1 for tokens, 0 for padding, `int64 [texts, length]`.

        Returns:
            `float32 [texts, terms]`, none negative.
        """
        kind = self.cell.query if side == "query" else self.cell.document
        if kind == "binary":
            weights = self._scattered(torch.ones_like(ids, dtype=torch.float32), ids, mask, "max")
        elif kind == "mlm":
            weights = self._pooled_logits(ids, mask)
        else:
            if kind == "expanded-mlp":
                ids, mask = self.expanded(ids, mask)
            hidden = self.backbone.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            own = torch.log1p(torch.relu(self.heads[side](hidden).squeeze(-1)))
            weights = self._scattered(own, ids, mask, self.cell.pooling)
        return _largest(weights, self.cell.query_terms if side == "query" else self.cell.document_terms)

    @torch.no_grad()
    def expanded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids with those that the language-model head finds likeliest and the text does not have at their end."""
        own = self._scattered(torch.ones_like(ids, dtype=torch.float32), ids, mask, "max")
        logits = self._pooled_logits(ids, mask).masked_fill(own > 0, -1.0)
        logits[:, self.special] = -1.0
        room = self.backbone.config.max_position_embeddings - ids.shape[1]
        found = logits.topk(max(0, min(self.cell.expansion, room)), dim=1)
        present = (found.values > 0).long()
        return torch.cat([ids, found.indices], 1), torch.cat([mask, present], 1)

    def _pooled_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.backbone(input_ids=ids, attention_mask=mask).logits
        if self.cell.pooling == "sum":
            return (torch.log1p(torch.relu(logits)) * mask[:, :, None]).sum(1)
        return torch.log1p(torch.relu(logits.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)))

    def _scattered(self, values: Tensor, ids: Tensor, mask: Tensor, pooling: str) -> Tensor:
        """Weights of tokens as weights of terms; what is no term weighs nothing."""
        values = values * mask * ~torch.isin(ids, self.special)
        empty = torch.zeros(ids.shape[0], self.terms, dtype=values.dtype, device=values.device)
        if pooling == "sum":
            return empty.scatter_add(1, ids, values)
        return empty.scatter_reduce(1, ids, values, reduce="amax")


def _largest(weights: Tensor, count: int | None) -> Tensor:
    """Each row's `count` largest weights, the others 0."""
    if count is None or count >= weights.shape[1]:
        return weights
    kept = weights.topk(count, dim=1).indices
    return weights * torch.zeros_like(weights).scatter(1, kept, 1.0)
