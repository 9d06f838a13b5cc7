"""Templates give what plain Jinja gives, and those that never end or fill the memory are refused at once."""

from __future__ import annotations

import tracemalloc

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from sparsebench.tasks.templates import BoundedEnvironment

ROW = {
    "prompt": "In 2024 a dog",
    "n": 12345678,
    "x": [3, 1, 2],
    "d": {"a": 1, "b": None},
    "words": "a b",
    "deep": [[1], [2, 3]],
}

USUAL = [
    "{{ prompt }}\n",
    "{% for i in x %}{{ loop.index }}/{{ loop.length }}{{ i }}{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}",
    "{% for k, v in d.items() if v %}{{ k }}={{ v }}{% endfor %}",
    "{% for c in 'abc' %}{{ c }}{% endfor %}{% for i in x | map('string') %}{{ loop.index }}{{ i }}{% endfor %}",
    "{% for a in deep recursive %}{% if a is iterable %}[{{ loop(a) }}]{% else %}{{ a }}{% endif %}{% endfor %}",
    "{% macro f(a, b=2) %}<{{ a }}{{ b }}>{% endmacro %}{{ f(1) }}{{ f(1, b=n) }}",
    "{% set a %}{{ prompt }}!{% endset %}{{ a ~ ' ' ~ n ~ x }}{% set b | upper %}x{% endset %}{{ b }}",
    "{{ n * n }} {{ n ** 2 }} {{ 2 ** 0.5 }} {{ n % 7 }} {{ 'ab' * 3 }} {{ x + [4] }} {{ x * 2 }} {{ 1.5 * 2 }}",
    "{{ 'In 2024 %s, %5.2f and %d' % (words, 1.5, n) }} {{ '%s' | format(n) }} {{ '%*d' % (5, 3) }}",
    "{{ 'Since 2024: {} of {:,}, {:>{}}'.format(words, n, 'x', 9) }} {{ '{a}'.format_map(d) }}",
    "{{ words.split() | join('-') }} {{ ', '.join(words.split()) }} {{ prompt.replace('a', 'bb') }}",
    "{{ words | center(20) }}{{ words.ljust(10) }}{{ prompt | indent(2) }}{{ x | batch(2) | list }}{{ x | sort | first }}",
    "{{ x | slice(2) | list }}{{ prompt | wordwrap(5) }}{{ range(3) | list }}{{ n | round(-3) }}",
    "{% set ns = namespace(total=0) %}{% for i in x %}{% set ns.total = ns.total + i %}{% endfor %}{{ ns.total }}",
]


@pytest.mark.parametrize("source", USUAL)
def test_usual_templates_give_what_jinja_gives(source: str) -> None:
    plain = jinja2.Environment(keep_trailing_newline=True).from_string(source).render(ROW)
    bounded = BoundedEnvironment()
    assert bounded.text(bounded.template(source), ROW) == plain


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in x | map('string') %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in [1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "{{ lipsum(n=1000000000) }}",
    "{{ 'a' * 2000000000 }}",
    "{{ 2000000000 * 'a' }}",
    "{{ [1] * 2000000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('', ns.x) %}{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set a %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '%.2000000000f' | format(1) }}",
    "{{ '{:2000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 2000000000) }}",
    "{{ 'a'.center(2000000000) }}",
    "{{ 'a' | center(2000000000) }}",
    "{{ 'a' | indent(2000000000, first=true) }}",
    "{{ ['a'] | map('center', 2000000000) | list }}",
    "{{ x | slice(2000000000) | list }}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_templates_without_end_are_refused(source: str) -> None:
    bounded = BoundedEnvironment()
    if "2000000000" in source:
        tracemalloc.start()
    try:
        with pytest.raises((SecurityError, OverflowError, RecursionError, jinja2.UndefinedError)):
            bounded.text(bounded.template(source), ROW)
        assert not tracemalloc.is_tracing() or tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_each_text_has_work_of_its_own() -> None:
    bounded = BoundedEnvironment()
    template = bounded.template("{% for i in range(99999) %}{% endfor %}{{ x }}")
    assert {bounded.text(template, {"x": number}) for number in range(20)} == {str(number) for number in range(20)}
