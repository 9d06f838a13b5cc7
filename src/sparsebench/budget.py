"""How sparse a method is asked to be.

A budget is one number with a kind. Which kinds a method takes is on its card; what it really did is measured.

| kind | value | meaning |
| --- | --- | --- |
| `sparsity` | 0 <= s < 1 | share of units left out |
| `tokens` | int >= 1 | keys a query may read |
| `coverage` | 0 < c <= 1 | cumulative attention mass to keep |
| `pattern` | "n:m" | n zeros in each m consecutive weights along the input |
| `terms` | int >= 1 | non-zero terms of a vector |
| `depth` | int >= 1 | candidates an approximate search touches (efSearch and its like) |
| `bits` | int >= 1 | bits for each stored weight |
| `flops`, `bytes`, `kv_bytes`, `active_params` | 0 < x <= 1 | a target: share of the dense cost; `iso` solves for a
  budget of the method's own that meets it |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sparsebench.errors import InputError, UnknownNameError

BudgetKind = Literal[
    "sparsity",
    "tokens",
    "coverage",
    "pattern",
    "terms",
    "depth",
    "bits",
    "flops",
    "bytes",
    "kv_bytes",
    "active_params",
]
KINDS: tuple[str, ...] = get_args(BudgetKind)
ISO_KINDS = ("flops", "bytes", "kv_bytes", "active_params")
INTEGERS = ("tokens", "terms", "depth", "bits")
LARGEST = 2**53
"""Whole numbers up to here are exact as floats, so that JSON keeps them."""


@dataclass(frozen=True)
class Budget:
    """One budget: `Budget("sparsity", 0.5)`, `Budget("pattern", "2:4")`.

    Raises:
        InputError: The value is out of its kind's range.
        UnknownNameError: There is no such kind.
    """

    kind: BudgetKind
    value: float | int | str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("budget", self.kind, KINDS)
        if self.kind == "pattern":
            object.__setattr__(self, "value", "{}:{}".format(*parse_pattern(self.value)))
            return
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise InputError(f"budget {self.kind}: {self.value!r} is not a number")
        if not abs(self.value) <= LARGEST:
            raise InputError(f"budget {self.kind}={self.value}: out of range")
        if self.kind in INTEGERS:
            if self.value != int(self.value) or self.value < 1:
                raise InputError(f"budget {self.kind}={self.value}: must be a whole number of at least 1")
            object.__setattr__(self, "value", int(self.value))
            return
        object.__setattr__(self, "value", float(self.value) + 0.0)  # of -0.0 it makes 0.0
        if self.kind == "sparsity" and not 0 <= float(self.value) < 1:
            raise InputError(f"budget sparsity={self.value}: must be at least 0 and below 1", "0.5 leaves out half")
        if self.kind in ("coverage", *ISO_KINDS) and not 0 < float(self.value) <= 1:
            raise InputError(f"budget {self.kind}={self.value}: must be above 0 and at most 1")

    @property
    def label(self) -> str:
        """How tables print it: `50%`, `2:4`, `256 tokens`."""
        if self.kind == "pattern":
            return str(self.value)
        if self.kind == "sparsity":
            return f"{100 * float(self.value):g}%"
        return f"{self.value:g} {self.kind}" if isinstance(self.value, float) else f"{self.value} {self.kind}"

    @property
    def number(self) -> float:
        """The value as a number; a pattern's is its share of zeros."""
        if self.kind == "pattern":
            zeros, group = parse_pattern(self.value)
            return zeros / group
        return float(self.value)

    def to_dict(self) -> dict[str, float | int | str]:
        """`{"sparsity": 0.5}`: the form that suites and records hold."""
        return {self.kind: self.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Budget:
        """The inverse of `to_dict`.

        Raises:
            InputError: Not exactly one kind.
        """
        if len(data) != 1:
            raise InputError(f"a budget has one kind, not {sorted(data)}", "write for instance {sparsity: 0.5}")
        ((kind, value),) = data.items()
        return cls(kind, value)  # type: ignore[arg-type]


def parse_pattern(value: object) -> tuple[int, int]:
    """`"2:4"` to `(2, 4)`: zeros in each group of consecutive weights.

    Raises:
        InputError: Not `n:m` with 0 < n < m.
    """
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", value) if isinstance(value, str) else None
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise InputError(f"pattern {value!r}: must be 'n:m' with 0 < n < m", 'quote it in YAML: pattern: "2:4"')
    return int(match[1]), int(match[2])
