"""A finding as its YAML file states it. The rule has a hash, so that one which was changed after a run is seen."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sparsebench.adapters.card import Paper
from sparsebench.errors import IntegrityError, UnknownNameError
from sparsebench.findings.rules import AnyRule
from sparsebench.identity import digest
from sparsebench.suite import Suite
from sparsebench.suite_source import from_source
from sparsebench.yaml_source import YamlSource, parse_yaml, read_yaml, validate


class Finding(BaseModel):
    """A published finding, the rule that decides it, and what to run for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finding: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    version: int = Field(ge=1)
    title: str
    description: str = ""
    papers: list[Paper] = Field(min_length=1)
    """Who states it; the first is the source."""
    rule: AnyRule
    rule_sha256: str
    """Of the rule as it stands in the file."""
    suite: Suite
    """What is run for it."""


def names() -> list[str]:
    """Findings that come with the package."""
    return sorted(_texts())


def findings() -> list[Finding]:
    """All findings that come with the package, by name."""
    return [load(name) for name in names()]


def load(name: str) -> Finding:
    """A finding by name, or from a `.yaml` file.

    Raises:
        InputError: No such finding, or one that is wrong; the message has file, line and key.
        IntegrityError: Its rule is not the one that its hash is of.
    """
    if name.endswith((".yaml", ".yml")):
        return from_yaml(read_yaml(Path(name)))
    texts = _texts()
    if name not in texts:
        raise UnknownNameError("finding", name, texts)
    return from_yaml(parse_yaml(texts[name], f"findings/{name}.yaml"))


def from_yaml(source: YamlSource) -> Finding:
    """Validate a parsed finding, with its suite.

    Raises:
        InputError: It is wrong; the message has file, line and key.
        IntegrityError: Its rule is not the one that its hash is of.
    """
    if not isinstance(source.data, dict) or not isinstance(source.data.get("suite"), dict):
        raise source.error((), "a finding is a mapping of keys, `suite` among them")
    suite = _suite(source)
    finding = validate(Finding, source, {**source.data, "suite": suite})
    found = rule_hash(source.data["rule"])
    if found != finding.rule_sha256:
        raise IntegrityError(
            f"{source.name}:{source.line(('rule_sha256',))}: the rule has sha256 {found}, not {finding.rule_sha256}",
            "a rule is fixed before a run; a new one gets a new version and its own hash",
        )
    return finding


def rule_hash(rule: dict[str, Any]) -> str:
    """sha256 of a rule as plain data, its canonical JSON."""
    return digest(rule)


def _suite(source: YamlSource) -> Suite:
    """The suite within; its name and version are the finding's."""
    lines = {place[1:]: line for place, line in source.lines.items() if place[:1] == ("suite",)}
    named = {"suite": source.data.get("finding"), "version": source.data.get("version")}
    return from_source(YamlSource(source.name, {**named, **source.data["suite"]}, lines))


def _texts() -> dict[str, str]:
    folder = files("sparsebench.suites").joinpath("findings")
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
