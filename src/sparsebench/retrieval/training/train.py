"""The training loop. A run that was stopped goes on from its last checkpoint and gives what it would have given.

Everything random of a step is drawn from the seed and the step, so no state of a generator has to be kept. Checkpoints
are safetensors and JSON.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from sparsebench.data.cache import publish, staging
from sparsebench.errors import InputError
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.encoders import wordpieces
from sparsebench.retrieval.sparse_vectors import idf
from sparsebench.retrieval.training import losses
from sparsebench.retrieval.training.examples import Batch, Examples, batch_of, examples
from sparsebench.retrieval.training.model import LearnedSparseModel, Side
from sparsebench.retrieval.training.settings import Settings

STATE = "training.json"
OPTIMISER = "optimiser.safetensors"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Step:
    """What one step saw.

    Attributes:
        step: Its number, from 0.
        loss: The ranking loss.
        penalty: The penalty with its strength.
        query_terms: Terms of a query, on average.
        document_terms: Terms of a document, on average.
    """

    step: int
    loss: float
    penalty: float
    query_terms: float
    document_terms: float


class Trainer:
    """One run of one cell.

    Args:
        settings: What is trained.
        base: The folder of the masked language model.
        collection: What it is trained on.
        out: Where its checkpoint lies, and in the end the encoder.

    Raises:
        InputError: `out` holds a run of other settings, or there are too few queries.
    """

    def __init__(self, settings: Settings, base: Path, collection: Collection, out: Path) -> None:
        self.settings, self.out = settings, out
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.examples: Examples = examples(settings, collection)
        torch.manual_seed(settings.seed)
        checkpoint = out / CHECKPOINT
        state = _state(checkpoint, settings)
        self.step = int(state["step"]) if state else 0
        folder = checkpoint if state else base
        self.model = (
            LearnedSparseModel.from_folder(folder) if state else LearnedSparseModel.from_base(folder, settings.cell)
        )
        self.steps: list[Step] = [Step(**each) for each in state["steps"]] if state else []
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        if state:
            _restore(self.optimiser, self.model, load_file(checkpoint / OPTIMISER))
        pieces = wordpieces(self.tokenizer, self.examples.documents, self.model.terms, settings.max_length)
        self.idf = torch.from_numpy(np.maximum(idf(pieces), 1e-3))

    def run(self, until: int | None = None, report: Callable[[Step], None] | None = None) -> None:
        """Train to the last step, or until one; a checkpoint is left at the end and now and then."""
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        self.model.train()
        while self.step < last:
            done = self._train_step(batch_of(self.examples, self.settings, self.step))
            self.steps.append(done)
            self.step += 1
            if report is not None:
                report(done)
            if self.step % self.settings.save_every == 0 or self.step == last:
                self.save()

    def save(self) -> None:
        """Write the checkpoint; the one before stays until this one is whole."""
        with staging(self.out) as folder:
            built = folder / CHECKPOINT
            built.mkdir()
            self.model.save(built)
            self.tokenizer.save_pretrained(built)
            save_file(_moments(self.optimiser, self.model), built / OPTIMISER)
            state = {
                "settings": self.settings.model_dump(mode="json"),
                "hash": self.settings.hash,
                "step": self.step,
                "steps": [vars(step) for step in self.steps],
            }
            (built / STATE).write_text(json.dumps(state), encoding="utf-8")
            target = self.out / CHECKPOINT
            if target.is_dir():
                target.replace(folder / "before")
            publish(built, target)

    def encoder(self) -> Path:
        """The trained encoder's folder, for a `sparse-encoder` system: the checkpoint without the optimiser.

        Raises:
            InputError: Steps are left.
        """
        if self.step < self.settings.steps:
            raise InputError(f"{self.settings.steps - self.step} steps are left", "run the rest first")
        target = self.out / "encoder"
        with staging(self.out) as folder:
            shutil.copytree(self.out / CHECKPOINT, folder / "encoder", ignore=shutil.ignore_patterns(OPTIMISER))
            if target.is_dir():
                target.replace(folder / "before")
            return publish(folder / "encoder", target)

    def _train_step(self, batch: Batch) -> Step:
        settings = self.settings
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * losses.rate(self.step, settings.steps, settings.warmup)
        queries = self._encoded("query", [self.examples.queries[n] for n in batch.queries])
        documents = self._encoded("document", [self.examples.documents[n] for n in batch.documents])
        ranking = self._ranking(losses.products(queries, documents), batch)
        rule = settings.regulariser
        pressed = losses.strength(self.step, settings.steps, rule.ramp) * (
            rule.documents * losses.penalty(documents, rule, self.idf)
            + rule.queries * losses.penalty(queries, rule, self.idf)
        )
        self.optimiser.zero_grad()
        torch.autograd.backward(ranking + pressed)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        terms = [float((weights > 0).sum(1).float().mean()) for weights in (queries, documents)]
        return Step(self.step, ranking.item(), pressed.item(), *terms)

    def _ranking(self, scores: Tensor, batch: Batch) -> Tensor:
        if self.settings.loss == "contrastive":
            return losses.contrastive(scores, torch.arange(len(batch.queries)), torch.from_numpy(batch.allowed))
        teacher = self.examples.teacher
        if teacher is None:
            raise InputError("distillation needs a teacher")
        taught = torch.from_numpy(teacher[np.ix_(batch.queries, batch.documents)])
        return losses.distillation(scores, taught, self.settings.temperature)

    def _encoded(self, side: Side, texts: list[str]) -> Tensor:
        tokens: Any = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.settings.max_length, return_tensors="pt"
        )
        weights: Tensor = self.model(side, tokens["input_ids"], tokens["attention_mask"])
        return weights


def _state(checkpoint: Path, settings: Settings) -> dict[str, Any] | None:
    path = checkpoint / STATE
    if not path.is_file():
        return None
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if state["hash"] != settings.hash:
        raise InputError(f"{checkpoint.parent} holds a run of other settings", "give another folder, or remove it")
    return state


def _moments(optimiser: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by parameter and name."""
    return {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _restore(optimiser: torch.optim.Optimizer, model: torch.nn.Module, moments: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        own = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
        if own:
            optimiser.state[parameter] = own
