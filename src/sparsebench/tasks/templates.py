"""Templates of tasks, which may be a stranger's: Jinja in a sandbox that also bounds their work and their output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

WORK = 1_000_000
"""Passes through loops for one text."""
CALL = 10
"""Passes that a call counts for."""
LONGEST = 20_000_000
"""Characters of a text, and items of a list."""
WIDEST = 1000
"""Characters that a text may be padded to."""
BITS = 100_000
"""Of a whole number."""
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\d{4,}|\d*\.\d{4,})")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*\d{4,}")
_GIVEN_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\d*\.)?\*")
_GIVEN_BRACES = re.compile(r"\{[^{}]*:[^{}]*\{")
"""Widths that are among what is formatted."""
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_WIDE = ("center", "indent", "batch", "slice", "wordwrap")
"""Filters that a number makes long."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renders templates that end, and whose texts are no longer than any prompt is.

    Beyond what the sandbox forbids, a template can go through loops `WORK` times, or call a tenth as often, and make
    nothing of more than `LONGEST` characters or items.

    Args:
        nulls: Whether null is printed, as `None`; else it is refused.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, nulls: bool = False) -> None:
        self._nulls = nulls
        super().__init__(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=self._printed
        )
        self.filters.update({"counted": self._counted, "bounded": _bounded})
        self.filters.update({name: _narrow(self.filters[name]) for name in _WIDE})
        self.filters["format"] = _narrow_format(self.filters["format"])
        del self.globals["lipsum"]
        self._work = self._characters = 0

    def template(self, source: str) -> Template:
        """A template, with its loops counted and what it joins measured."""
        return self.from_string(_Bounding().visit(self.parse(source)))

    def text(self, template: Template, fields: Mapping[str, Any]) -> str:
        """What a template makes of a row.

        Raises:
            Exception: Whatever its expressions raise; a `SecurityError` where it goes on for too long.
        """
        self._work = self._characters = 0
        parts, length = [], 0
        for part in template.generate(fields):
            length += len(part)
            _check_length(length)
            parts.append(part)
        return "".join(parts)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what the sandbox lets a template call."""
        self._worked(CALL + sum(len(each) for each in args if isinstance(each, Sized) and not isinstance(each, str)))
        name = getattr(called, "__name__", "")
        owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps `format`
        if isinstance(owner, str):
            if name in _PADDING:
                _check_widths(*args, *kwargs.values())
            if name in ("format", "format_map"):
                _check_format(owner, [*args, *kwargs.values()])
            if name == "replace" and len(args) > 1 and isinstance(args[1], str):
                _check_length(len(owner) + (len(owner) + 1) * len(args[1]) // max(1, len(str(args[0]))))
            if name == "join" and args and isinstance(args[0], Sized):
                _check_length(len(owner) * len(args[0]))
        return _bounded(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, where what they make is not too long."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else [right])
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_length(len(left) + len(right))
        elif operator == "*" and (isinstance(left, Sized) or isinstance(right, Sized)):
            _check_length(_times(left) * _times(right))
        elif operator == "*" and whole:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and whole:
            _check_bits(left.bit_length() * abs(right))
        return super().call_binop(context, operator, left, right)

    def _worked(self, count: int) -> None:
        self._work += count
        if self._work > WORK:
            raise SecurityError(f"it goes through loops and calls more than {WORK:,} times")

    def _printed(self, value: Any) -> Any:
        if value is None and not self._nulls:
            raise ValueError("null where a text is wanted")
        if isinstance(value, str):
            self._characters += len(value)
            _check_length(self._characters)
        return value

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        """What a loop goes through."""
        if not isinstance(items, Sized):
            return self._one_by_one(items)
        self._worked(len(items))
        return items

    def _one_by_one(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._worked(1)
            yield item


class _Bounding(NodeTransformer):
    """Puts filters around what loops go through, what `~` joins and what `{% set %}` blocks hold."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """A loop."""
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted", node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        """`a ~ b`."""
        self.generic_visit(node)
        return _filtered(node, "bounded", node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        """`{% set a %}...{% endset %}`."""
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "bounded", node)
        return node


def _filtered(inner: Any, name: str, at: nodes.Node) -> nodes.Filter:
    """`inner | name`; without an inner expression a filter of the block it stands in."""
    return nodes.Filter(inner, name, [], [], None, None, lineno=at.lineno, environment=at.environment)


def _bounded(value: Any) -> Any:
    if isinstance(value, Sized) and not isinstance(value, range):
        _check_length(len(value))
    return value


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise SecurityError(f"it makes a text or a list of more than {LONGEST:,}")


def _check_widths(*numbers: Any) -> None:
    if any(isinstance(number, int) and number > WIDEST for number in numbers):
        raise SecurityError(f"it makes a text wider than {WIDEST}")


def _check_bits(bits: int) -> None:
    if bits > BITS:
        raise SecurityError(f"it makes a number of more than {BITS:,} bits")


def _check_format(text: str, values: Iterable[Any]) -> None:
    if _WIDE_PERCENT.search(text) or _WIDE_BRACES.search(text):
        raise SecurityError(f"it makes a text wider than {WIDEST}")
    if _GIVEN_PERCENT.search(text) or _GIVEN_BRACES.search(text):
        # Which of the values is a width is not asked; numbers that are shown are rarely as large as this.
        for value in values:
            _check_length(value if isinstance(value, int) else 0)


def _times(value: Any) -> int:
    """How long something is, or how often it repeats."""
    return len(value) if isinstance(value, Sized) else max(0, value) if isinstance(value, int) else 1


def _narrow_format(made: Callable[..., str]) -> Callable[..., str]:
    def narrow(value: Any, *args: Any, **kwargs: Any) -> str:
        _check_format(str(value), [*args, *kwargs.values()])
        return made(value, *args, **kwargs)

    return narrow


def _narrow(made: Callable[..., Any]) -> Callable[..., Any]:
    def narrow(*args: Any, **kwargs: Any) -> Any:
        _check_widths(*args[1:], *kwargs.values())
        return made(*args, **kwargs)

    narrow.__dict__.update(made.__dict__)  # whether it wants the environment
    return narrow
