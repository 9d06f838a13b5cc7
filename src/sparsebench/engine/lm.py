"""The engine as an lm-eval model: any lm-eval task runs on it unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sparsebench.engine.generation import Prompt, Sampling, generate
from sparsebench.engine.scoring import Scored, TokenScores, score
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from sparsebench.systems.causal_lm import CausalLM

DEFAULT_MAX_LENGTH = 2048
DEFAULT_GENERATED = 256


def positions_of(system: CausalLM) -> int | None:
    """Positions that a model was made for; None where its configuration does not tell."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"):
        value = getattr(system.config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def refuse_beyond(system: CausalLM, length: int, what: str) -> None:
    """Refuse texts that are longer than a model with a table of learned positions has rows.

    Raises:
        InputError: They are.
    """
    known = positions_of(system)
    if known is not None and length > known and _learned_positions(system.model, known):
        raise InputError(
            f"{what} has {length:,} tokens, and {type(system.model).__name__} has positions for {known:,}",
            "choose a shorter form of the task, or a model that reads longer texts",
        )


def _learned_positions(model: torch.nn.Module, known: int) -> bool:
    """Whether it looks positions up in a table, which may have a few rows for padding."""
    tables = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    return any("pos" in name or "wpe" in name for name, m in tables.items() if 0 <= m.num_embeddings - known <= 8)


class SparseLM(TemplateLM):  # type: ignore[misc]
    """A system behind lm-eval's interface.

    Tokenisation, truncation, prefix token and stop rules are those of lm-eval's Hugging Face backend, so that dense
    results agree with it; what differs is how the work is arranged.

    Args:
        system: The model, with whatever is attached to it at the time of a call.
        context_field: Name of a document field whose text is the context; where the prompt holds it, prefill ends
            with it for methods that act in decode.
    """

    backend = "causal"

    def __init__(self, system: CausalLM, context_field: str | None = None) -> None:
        super().__init__()
        self.system = system
        self.tokenizer = system.tokenizer
        self.context_field = context_field
        self.truncated = 0
        """Requests whose beginning was cut off, since they are longer than the model's positions."""
        self._encoded: dict[tuple[str, bool], list[int]] = {}
        self._pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    @classmethod
    def of(cls, system: CausalLM, context_field: str | None = None) -> SparseLM:
        """The interface that is kept with a system for all tasks, with the texts that it has tokenised."""
        lm: SparseLM = system.memory.setdefault("lm", None) or cls(system)
        system.memory["lm"] = lm
        lm.context_field, lm.truncated = context_field, 0
        return lm

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence: the model's positions, else the tokenizer's word, else 2,048."""
        positions = positions_of(self.system)
        if positions is not None:
            return positions
        length = getattr(self.tokenizer, "model_max_length", None)
        return int(length) if length and length < 10**9 else DEFAULT_MAX_LENGTH

    @property
    def tokenizer_name(self) -> str:
        """Name under which chat templates are cached."""
        return str(getattr(self.tokenizer, "name_or_path", self.system.ref)).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; the tokenizer's own rule on special tokens unless told otherwise."""
        special = self._special(string) if add_special_tokens is None else add_special_tokens
        key = (string, special)
        if key not in self._encoded:
            self._encoded[key] = list(self.tokenizer.encode(string, add_special_tokens=special))
        return self._encoded[key]

    def _special(self, string: str) -> bool:
        prefix = self.tokenizer.decode([self.prefix_token_id])
        return not (prefix and string.startswith(prefix))

    def _encode_all(self, strings: Sequence[str]) -> None:
        """Fill the cache in one call of the tokenizer, which works on several threads."""
        missing = sorted({s for s in strings if (s, self._special(s)) not in self._encoded})
        for special in (True, False):
            part = [s for s in missing if self._special(s) is special]
            if part:
                encoded = self.tokenizer(part, add_special_tokens=special)["input_ids"]
                self._encoded.update({(s, special): list(e) for s, e in zip(part, encoded, strict=True)})

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt text of a chat."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): sum of log-probabilities, and whether greedy decoding would give it."""
        pairs = [request.args for request in requests]
        self._encode_all([part for c, t in pairs if c for part in (c.rstrip(" \n\t"), c, c + t)])
        scored = []
        for request, (context, continuation) in zip(requests, pairs, strict=True):
            prompt, answer = self._pair(context, continuation)
            scored.append(self._scored(prompt, answer, self._context_tokens(request, prompt)))
        return [(float(s.logprobs.sum()), bool(s.greedy.all())) for s in score(self.system, scored)]

    def token_scores(self, requests: Sequence[tuple[str, str]]) -> list[TokenScores]:
        """Log-probabilities of every continuation token, for (context, continuation) pairs."""
        return score(self.system, [self._scored(*self._pair(c, t), None) for c, t in requests])

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = score(self.system, [self._scored(prompt, answer, None) for _, prompt, answer in requests])
        return [(float(s.logprobs.sum()), bool(s.greedy.all())) for s in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows of the model's length; every window is prefill."""
        windows: list[Scored] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for before, answer in map(
                make_disjoint_window,
                get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1),
            ):
                tokens = [*before, *answer]
                windows.append(Scored(tokens, len(answer), len(tokens)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, scores in zip(owners, score(self.system, windows), strict=True):
            totals[owner] += float(scores.logprobs.sum())
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop string, the end token or the limit."""
        self._encode_all([request.args[0] for request in requests])
        prompts = [self._prompt(request) for request in requests]
        return generate(self.system, prompts)

    def _prompt(self, request: Instance) -> Prompt:
        context, options = request.args
        options = normalize_gen_kwargs(dict(options), DEFAULT_GENERATED)
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(options.pop("until", None), eos=eos)
        limit = int(options.pop("max_gen_toks"))
        whole = self.tok_encode(context)
        tokens = whole[-max(1, self.max_length - limit) :] or [self.prefix_token_id]
        self.truncated += len(tokens) < len(whole)
        greedy = not options.get("do_sample", False) or not options.get("temperature", 0.0)
        sampling = Sampling(
            temperature=0.0 if greedy else float(options["temperature"]),
            top_k=int(options.get("top_k") or 0),
            top_p=float(options.get("top_p") or 1.0),
            seed=int(options.get("seed") or 0),
        )
        prefill = self._prefill(len(tokens), self._context_tokens(request, tokens))
        ignore_end = bool(options.get("ignore_eos", False))
        stops = frozenset() if ignore_end else self._stop_tokens()
        strings = tuple(s for s in until if s != eos or not ignore_end)
        return Prompt(tokens, prefill, strings, limit, stops, sampling)

    def _stop_tokens(self) -> frozenset[int]:
        configured = getattr(getattr(self.system.model, "generation_config", None), "eos_token_id", None)
        more = configured if isinstance(configured, list) else [configured]
        return frozenset({self.eot_token_id, *(int(t) for t in more if t is not None)})

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = (context, continuation)
        if key not in self._pairs:
            if context:
                self._pairs[key] = self._encode_pair(context, continuation)
            else:
                answer = self.tok_encode(continuation, add_special_tokens=False)
                has_prefix = bool(answer) and answer[0] == self.prefix_token_id
                self._pairs[key] = (answer[:1], answer[1:]) if has_prefix else ([self.prefix_token_id], answer)
        return self._pairs[key]

    def _scored(self, prompt: list[int], answer: list[int], context_tokens: int | None) -> Scored:
        # As lm-eval does: cut from the left to the model's length, the last token being predicted only.
        tokens = [*prompt, *answer][-(self.max_length + 1) :]
        self.truncated += len(tokens) < len(prompt) + len(answer)
        kept = max(len(tokens) - len(answer), 0)
        cut = len(prompt) - kept
        context = None if context_tokens is None else max(context_tokens - cut, 0)
        return Scored(tokens, min(len(answer), len(tokens) - 1), self._prefill(kept, context))

    def _prefill(self, prompt: int, context: int | None) -> int:
        """Tokens that run as prefill: the prompt; under a method that acts in decode the context, or all but one."""
        if not self.system.decode_from_context_end:
            return prompt
        if context is None or self.system.whole_prompt:
            return prompt - 1
        return min(context, prompt - 1)

    def _context_tokens(self, request: Instance, prompt: Sequence[int]) -> int | None:
        """Tokens of the prompt up to the end of the document's context; None where there is none."""
        document = request.doc if isinstance(request.doc, dict) else {}
        context = document.get(self.context_field) if self.context_field else None
        text = request.args[0]
        place = text.find(context) if isinstance(context, str) and context else -1
        if place < 0:
            return None
        whole = self.tok_encode(text)
        before = self.tok_encode(text[: place + len(context or "")])
        same = np.asarray(before[: len(whole)]) == np.asarray(whole[: len(before)])
        shared = len(same) if same.all() else int(np.argmin(same))
        return max(shared - (len(whole) - len(prompt)), 0) if len(whole) >= len(prompt) else shared
