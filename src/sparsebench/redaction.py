"""Keeping secrets out of what is stored and published: tokens of hubs, keys of services, passwords in addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

HIDDEN = "[hidden]"

_SECRET = (
    r"token|secret|passw(?:or)?d|passphrase|credentials?|signature|sig|authorization|auth"
    r"|(?:api|access|private|secret|account|auth)[-_]?key(?:[-_]?id)?|key"
)
_VARIABLE = re.compile(rf"(?:^|_)(?:{_SECRET})s?(?:_|$)", re.IGNORECASE)
_PARAMETER = re.compile(rf"(?:^|[-_.])(?:{_SECRET})(?:$|[-_.])|^x-(?:amz|goog)-|^se$|^sp$|^sv$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of an environment variable's value below which hiding it would rather hide words."""

_ADDRESS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bA[KS]IA[A-Z0-9]{12,}|\bxox[abeprs]-[\w-]{10,}|\bxapp-[\w-]{16,}|\bpypi-[\w-]{32,}|\bnpm_[A-Za-z0-9]{16,}"
    r"|\bAIza[\w-]{30,}|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
)
_BEARER = re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_OPTION = re.compile(rf"(--?[\w-]*(?:{_SECRET})(?:[ =]))(\S+)|(\b[\w-]*(?:{_SECRET})=)(\S+)", re.IGNORECASE)


def redacted(data: Any) -> Any:
    """Plain data with the secrets of its strings hidden."""
    return _redacted(data, _values())


def redacted_text(text: str) -> str:
    """A text without values of secret environment variables, tokens of known forms, and secrets of addresses."""
    return _hidden(text, _values())


def _redacted(data: Any, values: list[str]) -> Any:
    if isinstance(data, str):
        return _hidden(data, values)
    if isinstance(data, Mapping):
        return {key: _redacted(value, values) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_redacted(value, values) for value in data]
    return data


def _hidden(text: str, values: list[str]) -> str:
    for value in values:
        text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _ADDRESS.sub(lambda found: public_address(found[0]), text)
    return _BEARER.sub(rf"\1{HIDDEN}", _SHAPES.sub(HIDDEN, text))


def redacted_command(words: list[str]) -> str:
    """A command line as it may be published: options and assignments that sound like secrets have no value."""
    return _OPTION.sub(lambda found: f"{found[1] or found[3]}{HIDDEN}", redacted_text(" ".join(words)))


def public_address(address: str) -> str:
    """An address without user, password and the parameters that sign it.

    Text that is no address comes back as it is.
    """
    try:
        parts = urlsplit(address)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return address
    kept = [(name, value) for name, value in pairs if not _PARAMETER.search(name)]
    query = parts.query if len(kept) == len(pairs) else urlencode(kept)
    host = parts.netloc.rpartition("@")[2]
    if host == parts.netloc and query == parts.query:
        return address
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def _values() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _SHORTEST}
    # A file that holds a key is no secret, and hiding its name would hide folders of results.
    return sorted((value for value in found if not os.path.exists(value)), key=len, reverse=True)
