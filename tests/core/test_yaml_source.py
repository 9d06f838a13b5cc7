from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from sparsebench.errors import FieldError, InputError, SparseBenchError
from sparsebench.yaml_source import parse_yaml, read_yaml, validate


def message(text):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "f.yaml")
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", "f.yaml:4: b.c: the key stands twice"),
        ("a: [1,\n 2\n", "f.yaml:3:1: not YAML"),
        ("a: 1\n  b: 2\n", "f.yaml:2:4: not YAML"),
        ("a:\n  - !function x.y\n", "f.yaml:2: a.0: the tag !function is not allowed"),
        ("a: !!python/object:os.system {}\n", "f.yaml:1: a: the tag"),
        ("a: !!set {b}\n", "f.yaml:1: a: the tag"),
        ("x: 1\na: .nan\n", "f.yaml:2: a: .nan is no finite number"),
        ("a: -.inf\n", "f.yaml:1: a: -.inf is no finite number"),
        ("a: 2020-01-01\n", "f.yaml:1: a: '2020-01-01' is read as 'timestamp'"),
        ("b: &x {a: 1}\nc:\n  <<: *x\n", "f.yaml:3: c: '<<' is read as 'merge'"),
        ("? [1]\n: 2\n", "f.yaml:1: a key must be plain text"),
        ('a: "\\uD800"\n', "f.yaml:1: a: "),
        ('a: "\\U00FFFFFF"\n', "f.yaml: not YAML"),
        ("a: 1\nb: \x07\n", "f.yaml:2: not YAML: the character U+0007"),
        ("a: " + "9" * 5000, "f.yaml:1: a: "),
        ("[" * 3000, "f.yaml: not YAML: nested too deeply"),
        ("a: &a [*a]\n", "f.yaml: not YAML: nested too deeply"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: not YAML"),
    ],
)
def test_what_is_not_plain_data_is_refused_at_its_line(text, place):
    assert message(text).startswith(place)


def test_aliases_that_multiply_are_refused():
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    assert "more than 100,000 values" in message("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + levels)


def test_aliases_are_data_like_any_other():
    assert parse_yaml("a: &x [1, b]\nc: *x\n", "f").data == {"a": [1, "b"], "c": [1, "b"]}


def test_lines_of_keys_items_and_what_is_not_there():
    source = parse_yaml("a:\n  - b: 1\n\n  - c: 2\nd: 3\n", "f")
    places = {(): 1, ("a",): 1, ("a", 0, "b"): 2, ("a", 1): 4, ("a", 1, "c"): 4, ("d",): 5, ("a", 1, "none", "x"): 4}
    assert {place: source.line(place) for place in places} == places


@given(st.text(max_size=60))
def test_any_text_is_data_or_an_error_for_people(text):
    try:
        parse_yaml(text, "f")
    except SparseBenchError as error:
        assert error.message.startswith("f:")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: dict[str, Inner] = {}
    many: list[Inner | str] = []


@pytest.mark.parametrize(
    ("text", "wanted", "hint"),
    [
        ("name: a\nnmae: b\n", "f:2: nmae: no such key", "did you mean 'name'?"),
        ("name: a\ninner:\n  x:\n    tokns: 2\n", "f:4: inner.x.tokns: no such key", "did you mean 'tokens'?"),
        ("name: a\ninner:\n  x:\n    tokens: two\n", "f:4: inner.x.tokens: input should be a valid integer", None),
        ("name: a\nmany:\n  - tokens: 2\n  - tokens: two\n", "f:4: many.1.tokens:", None),
        ("inner: {}\n", "f:1: name: field required", None),
        ("name: a\ninner: 4\n", "f:2: inner: input should be a valid dictionary (got 4)", None),
        ("name: a\ninner: {1: {}}\n", "f:2: inner.1.", None),
    ],
)
def test_validation_errors_name_line_key_and_the_nearest_valid_name(text, wanted, hint):
    with pytest.raises(InputError) as caught:
        validate(Outer, parse_yaml(text, "f"))
    assert caught.value.message.startswith(wanted)
    assert caught.value.hint == hint


def test_what_a_validator_says_keeps_its_hint_and_gets_its_place():
    from pydantic import model_validator

    class Picky(Inner):
        @model_validator(mode="after")
        def _even(self):
            raise FieldError("must be even", "2 is")

    with pytest.raises(InputError) as caught:
        validate(Picky, parse_yaml("a: 1\nb:\n  tokens: 1\n", "f"), {"tokens": 1}, ("b",))
    assert (caught.value.message, caught.value.hint) == ("f:2: b: must be even", "2 is")


def test_files(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\n")
    for path, wanted in (
        (tmp_path / "a.yaml", "not UTF-8"),
        (tmp_path / "no.yaml", "No such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(InputError, match=wanted):
            read_yaml(path)
    with pytest.raises(InputError, match="null"):
        read_yaml(tmp_path / "a\0.yaml")
