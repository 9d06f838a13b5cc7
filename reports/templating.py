"""How the site's templates are rendered."""

from __future__ import annotations

from pathlib import Path

import jinja2

from sparsebench.reports import notation
from sparsebench.reports.verdicts import TESTED_ROLES
from sparsebench.reports.views import math_safe


def _shown(value: object) -> object:
    """What a template prints, whoever wrote it: texts that are no markup of ours lose what could turn a page around."""
    return notation.harmless(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def template_environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder: escaped, without direction characters, and with how numbers are written as filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["tested_roles"] = (*TESTED_ROLES, "")
    environment.filters |= {
        "bytes_size": notation.bytes_size,
        "count": notation.count,
        "model": notation.model_name,
        "number": notation.number,
        "p_value": notation.p_value,
        "percent": notation.percent,
        "ratio": notation.ratio,
        "raw": math_safe,
        "short": notation.printable,
        "signed": notation.signed,
        "known": notation.known,
        "web": lambda url: str(url).startswith(("https://", "http://")),
    }
    return environment
