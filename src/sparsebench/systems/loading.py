"""From a model reference to a system: finding the files, converting GGUF once, choosing the dtype."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.data.digests import sha256_file, sha256_path
from sparsebench.data.references import HubReference, PypiReference, parse
from sparsebench.data.sources import locate
from sparsebench.errors import InputError, IntegrityError, MissingError

if TYPE_CHECKING:
    import torch

    from sparsebench.systems.causal_lm import CausalLM

CONVERSION = 2
"""Version of the GGUF conversion; part of the name under which it is cached."""

PRECISION = "base_precision.txt"
"""File of a converted model that says what its weights were stored in."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
REMEMBERED = 1 << 20
"""Bytes of a file above which its hash is remembered."""
SAMPLES, SAMPLE = 32, 1 << 13
"""Places at which a large file is read to see that it is still the same, and bytes at each."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
TOKENS = re.compile(
    r"(config|generation_config|added_tokens|special_tokens_map|tokenizer.*|vocab|merges)\.\w+$|.*\.model$"
)
"""Further files of a folder that change what a model answers."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        ref: Canonical reference.
        folder: Folder with configuration, weights and tokenizer, as transformers reads it.
        fingerprint: Of the weights: a file's sha256, a hub commit, or a hash of the folder.
        base_precision: What the weights were stored in, where the files say.
    """

    ref: str
    folder: Path
    fingerprint: str
    base_precision: str = ""


def model_files(ref: str) -> ModelFiles:
    """Files of a model, fetched and, from GGUF, converted if need be.

    Raises:
        InputError: The text is no reference.
        MissingError: The model is not to be had; the message says what was tried.
    """
    reference = parse(ref)
    located = locate(reference, kind="model")
    path = located.path
    if path.is_file() and path.suffix == ".gguf":
        fingerprint = _cached_digest(path)
        folder = _converted(path, fingerprint)
        return ModelFiles(str(reference), folder, fingerprint, (folder / PRECISION).read_text(encoding="utf-8"))
    if path.is_file():
        raise InputError(
            f"{ref}: {path.name} is no model", "give a folder in the form of transformers, or a .gguf file"
        )
    if isinstance(reference, HubReference):
        return ModelFiles(located.source, path, located.source)
    if isinstance(reference, PypiReference):
        return ModelFiles(str(reference), path, sha256_path(path))
    return ModelFiles(str(reference), path, _folder_fingerprint(path))


def load_causal_lm(
    ref: str, dtype: str = "auto", device: str = "cpu", batch_tokens: int | None = None, devices: int = 1
) -> CausalLM:
    """A causal LM under test.

    Args:
        ref: Model reference.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `cpu`, `cuda`, `cuda:1`.
        batch_tokens: Tokens of one forward pass.
        devices: GPUs that its blocks are spread over, from `device` on; its weights pass through the host's memory.

    Raises:
        InputError: It is no causal LM, or there are fewer GPUs.
        MissingError: It is not to be had, or accelerate is not installed, which spreads it.
    """
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.spreading import devices_from, spread

    places = devices_from(device, devices)
    files = model_files(ref)
    chosen = resolve_dtype(dtype, device)
    check_causal(files)
    model, tokenizer = _load_model(files, chosen), load_tokenizer(ref)
    _check_vocabulary(files.ref, model, tokenizer)
    return CausalLM(
        spread(model, places),
        tokenizer,
        files.ref,
        files.fingerprint,
        files.base_precision or _stored_precision(files.folder) or str(chosen).removeprefix("torch."),
        batch_tokens,
    )


def load_tokenizer(ref: str) -> Any:
    """The tokenizer alone.

    Raises:
        InputError: There is none, or it has no end-of-text token.
    """
    files = model_files(ref)
    llama2c = _llama2c(files.folder)
    if llama2c is not None:
        from sparsebench.systems import llama2c as reader

        return reader.load_tokenizer(llama2c[1])
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(files.folder)
    except Exception as error:  # transformers raises whatever its tokenizers meet
        raise InputError(f"{ref}: its tokenizer does not load: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{ref}: its tokenizer has no end-of-text token")
    return tokenizer


def resolve_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """The dtype that a name means here; `auto` is bfloat16 where the processor computes in it.

    Raises:
        InputError: No such dtype.
    """
    import torch

    if name == "auto":
        if device.startswith("cuda"):  # a plan may be made where there is no GPU; those that it is for have bfloat16
            return torch.bfloat16 if not torch.cuda.is_available() or torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {name!r}: not one of auto, float32, bfloat16, float16")
    return found


def gguf_precision(path: Path) -> str:
    """`4-bit, dequantised`: the commonest bits of a GGUF file's large tensors."""
    from collections import Counter

    from gguf import GGUFReader

    bits: Counter[str] = Counter()
    for tensor in GGUFReader(str(path)).tensors:
        if len(tensor.shape) > 1:
            name = tensor.tensor_type.name
            digits = "".join(c for c in name[:3] if c.isdigit())
            bits["16-bit" if name in ("F16", "BF16") else f"{digits}-bit"] += int(tensor.n_elements)
    commonest = bits.most_common(1)[0][0] if bits else "32-bit"
    return commonest if commonest in ("16-bit", "32-bit") else f"{commonest}, dequantised"


def _load_model(files: ModelFiles, dtype: torch.dtype) -> Any:
    llama2c = _llama2c(files.folder)
    if llama2c is not None:
        from sparsebench.systems import llama2c as reader

        return reader.load_model(llama2c[0], dtype)
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            # Of a pickle, as older models are stored in, tensors are read and nothing else.
            model, found = AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=dtype, output_loading_info=True, weights_only=True
            )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises whatever a damaged or a foreign checkpoint makes it meet
        message = f"{files.ref} does not load as a causal language model: {_first_line(error)}"
        raise InputError(message) from error
    _check_complete(files.ref, found)
    return model


def _check_complete(name: str, found: Mapping[str, Any]) -> None:
    """Whether a checkpoint had every weight, by what transformers says of loading it.

    Raises:
        InputError: Some were missing, and are random now.
    """
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in found.get(kind, ()))
    if wrong:
        shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise InputError(f"{name}: {len(wrong)} weights are not in the checkpoint, or of another shape: {shown}")


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Whether every token that a text can have has an embedding; of padding and other marks none need have one.

    Raises:
        InputError: One has none.
    """
    embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if embeddings is None:
        return
    marks = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    marks -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if beyond := [i for i in tokenizer.get_vocab().values() if i >= embeddings and i not in marks]:
        message = f"{name}: its tokenizer has tokens up to {max(beyond)} and the model {embeddings} embeddings"
        raise InputError(message, "they do not belong together")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def count_parameters(folder: Path) -> int:
    """Parameters of a model from the headers of its files; for other files than safetensors from their size."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return sum(path.stat().st_size for path in folder.glob("*.bin")) // 4
    count = 0
    for path in files:
        try:
            with safe_open(path, framework="np") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{path} is cut short or damaged: {error}", "get the file again") from error
    return count


def _stored_precision(folder: Path) -> str:
    """The dtype that a configuration says its weights are stored in."""
    config = folder / "config.json"
    if not config.exists():
        return "float32" if _llama2c(folder) is not None else ""
    data = json.loads(config.read_text(encoding="utf-8"))
    return str(data.get("dtype") or data.get("torch_dtype") or "")


def _llama2c(folder: Path) -> tuple[Path, Path] | None:
    if (folder / "config.json").exists():
        return None
    from sparsebench.systems import llama2c

    return llama2c.find(folder)


def check_causal(files: ModelFiles) -> None:
    """Whether the files are those of a causal language model, as far as their configuration says.

    Raises:
        MissingError: There is no configuration.
        InputError: It is another kind of model, or no JSON.
    """
    if _llama2c(files.folder) is not None:
        return
    config = files.folder / "config.json"
    if not config.exists():
        raise MissingError(
            f"{files.ref}: no config.json in {files.folder}", "give the folder that transformers' save_pretrained wrote"
        )
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config}: not JSON ({error})") from None
    kinds = data.get("architectures") if isinstance(data, dict) else None
    if isinstance(kinds, list) and kinds and not any(str(kind).endswith(CAUSAL) for kind in kinds):
        raise InputError(
            f"{files.ref} is a {', '.join(map(str, kinds))}, not a causal language model",
            "only models that go from left to right can be loaded; encoders of texts for retrieval are systems of "
            "kind sparse-encoder or dense-encoder",
        )


def _converted(path: Path, fingerprint: str) -> Path:
    """The folder of a GGUF file's weights as float32 safetensors, made once."""
    target = cache_folder() / "converted" / f"{fingerprint[:32]}-v{CONVERSION}"
    if target.exists():
        return target
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with staging(target.parent) as aside, quiet(), redirect_stderr(io.StringIO()):
        try:
            options = {"gguf_file": path.name}
            _check_declared(path, AutoConfig.from_pretrained(path.parent, **options))
            loaded, found = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, output_loading_info=True, **options
            )
            _check_complete(path.name, found)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
            precision = gguf_precision(path)
        except (MemoryError, InputError):
            raise
        except Exception as error:  # the readers raise whatever a damaged file makes them meet
            raise InputError(f"{path.name} does not convert: {_first_line(error)}") from error
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model loaded from GGUF calls itself quantised and refuses to be saved; a plain one of its class does not.
        clean = type(loaded)(config)
        clean.load_state_dict(loaded.state_dict())
        clean.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        # Reading a GGUF file's tables takes seconds, so what they say of the precision is kept.
        (aside / PRECISION).write_text(precision, encoding="utf-8")
        return publish(aside, target)


def _check_declared(path: Path, config: Any) -> None:
    """Whether a GGUF file holds the weights that its configuration speaks of, before room is made for them.

    Raises:
        InputError: It holds far fewer.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    tensors = GGUFReader(str(path)).tensors
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > len(tensors):
        raise InputError(f"{path.name} declares {layers:,} layers and holds {len(tensors):,} tensors")
    with torch.device("meta"):
        declared = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    held = sum(int(tensor.n_elements) for tensor in tensors)
    if declared > 2 * held:  # a matrix that two layers share may be held once
        raise InputError(f"{path.name} declares {declared:,} weights and holds {held:,}")


def _cached_digest(path: Path) -> str:
    """sha256 of a file; of a large one remembered until anything about it changes."""
    before = path.stat()
    if before.st_size <= REMEMBERED:
        return sha256_file(path)
    note = cache_folder() / "digests.json"
    # Copies keep size and time of change; no copy keeps the inode and its own time, but some file systems have neither.
    key = (
        f"{path.resolve()}:{before.st_size}:{before.st_mtime_ns}:{before.st_ino}:{before.st_ctime_ns}:{_sampled(path)}"
    )
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or key not in known:
        from sparsebench.store import write_json

        known = {**(known if isinstance(known, dict) else {}), key: sha256_file(path)}
        with suppress(OSError):  # a cache that cannot be written costs time only
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, known)
    return str(known[key])


def _sampled(path: Path) -> str:
    """A hash of a file's beginning, its end and places between."""
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(number * max(0, size - SAMPLE) // (SAMPLES - 1))
            found.update(file.read(SAMPLE))
    return found.hexdigest()[:32]


def _folder_fingerprint(folder: Path) -> str:
    from sparsebench.identity import digest

    files = sorted(p for p in folder.iterdir() if p.is_file() and (p.suffix in WEIGHTS or TOKENS.match(p.name)))
    if not any(p.suffix in WEIGHTS for p in files):
        raise MissingError(f"{folder} holds no model weights", f"it should have files ending in {', '.join(WEIGHTS)}")
    return digest([[p.name, _cached_digest(p)] for p in files])


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of the libraries that load models."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    root = logging.getLogger("sentence_transformers").level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        logging.getLogger("sentence_transformers").setLevel(root)
        if bars:
            transformers_logging.enable_progress_bar()
