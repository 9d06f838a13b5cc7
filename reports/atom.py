"""Atom feeds (RFC 4287) with fixed bytes: nothing in them depends on when they are written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree

NAMESPACE = "http://www.w3.org/2005/Atom"
UNKNOWN = "1970-01-01T00:00:00Z"
"""The time of what recorded none."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Attributes:
        title: In a few words.
        summary: In a sentence.
        updated: When, ISO 8601.
        link: Address relative to the feed; empty for none.
    """

    title: str
    summary: str
    updated: str
    link: str = ""


def feed(title: str, entries: Sequence[Entry], *, author: str = "SparseBench") -> str:
    """A feed, newest first; an entry's id is a hash of what it says."""
    root = ElementTree.Element("feed", xmlns=NAMESPACE)
    ordered = sorted(entries, key=lambda entry: (time_of(entry.updated), entry.title), reverse=True)
    _add(root, "title", title)
    _add(root, "id", _id(title))
    _add(root, "updated", max((time_of(entry.updated) for entry in entries), default=UNKNOWN))
    _add(ElementTree.SubElement(root, "author"), "name", author)
    for entry in ordered:
        node = ElementTree.SubElement(root, "entry")
        _add(node, "title", entry.title)
        _add(node, "id", _id(title, entry.title, entry.summary, entry.updated))
        _add(node, "updated", time_of(entry.updated))
        if entry.link:
            ElementTree.SubElement(node, "link", href=entry.link)
        _add(node, "summary", entry.summary)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def time_of(text: str) -> str:
    """A time as Atom wants it, in UTC; of what is no time, the beginning of 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return UNKNOWN
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    # What XML 1.0 has no way to write is left out.
    kept = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
    ElementTree.SubElement(parent, tag).text = kept


def _id(*parts: str) -> str:
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    return f"urn:sha256:{digest}"
