import gzip
import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest

from sparsebench.data.digests import content_hash, sha256_tree
from sparsebench.data.sources import locate, resolve
from sparsebench.errors import InputError, IntegrityError, MissingError

ROWS = [{"q": "one", "a": 1}, {"q": "two", "a": 2}]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
SHA = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def site():
    """A web site on this machine; returns its address and the paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/short.jsonl":
                self.send_response(200)
                self.send_header("Content-Length", str(len(TEXT) + 10))
                self.end_headers()
                self.wfile.write(TEXT)
            elif self.path.startswith("/rows.jsonl"):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(TEXT)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_first_source_that_is_there_is_used(data_root):
    (data_root / "second.jsonl.gz").write_bytes(gzip.compress(TEXT))
    (data_root / "third.jsonl").write_bytes(b"{}\n")
    found = resolve([{"local": "first.jsonl"}, {"local": "second.jsonl.gz", "sha256": SHA}, {"local": "third.jsonl"}])
    assert found.paths == (data_root / "second.jsonl.gz",)
    assert found.source == "local:second.jsonl.gz"
    assert found.sha256 == SHA
    assert found.rows() == ROWS


def test_a_file_that_was_changed_is_not_passed_over(data_root):
    (data_root / "first.jsonl").write_bytes(TEXT + b" ")
    (data_root / "second.jsonl").write_bytes(TEXT)
    with pytest.raises(IntegrityError, match=r"local:first\.jsonl has sha256"):
        resolve([{"local": "first.jsonl", "sha256": SHA}, {"local": "second.jsonl"}])


def test_globs_lists_and_folders(data_root):
    for name in ("b_test.jsonl", "a_test.jsonl", "a_dev.jsonl"):
        (data_root / "set").mkdir(exist_ok=True)
        (data_root / "set" / name).write_text(json.dumps({"name": name}) + "\n")
    found = resolve([{"local": ["set/*_test.jsonl", "set/a_dev.jsonl"]}])
    assert [row["name"] for row in found.rows()] == ["a_test.jsonl", "b_test.jsonl", "a_dev.jsonl"]
    before = found.sha256
    assert resolve([{"local": ["set/*_test.jsonl", "set/a_dev.jsonl"], "sha256": before}]) == found
    (data_root / "set" / "a_dev.jsonl").write_text("{}\n")
    with pytest.raises(IntegrityError, match="3 files have sha256"):
        resolve([{"local": ["set/*_test.jsonl", "set/a_dev.jsonl"], "sha256": before}])
    assert resolve([{"local": "set"}]).sha256 == sha256_tree(data_root / "set")


OUTSIDE = ["../outside.jsonl", "/etc/passwd", "set/../../outside.jsonl", "link.jsonl", "dir/*.jsonl"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_local_sources_stay_in_their_folder(data_root, name):
    (data_root.parent / "outside.jsonl").write_bytes(TEXT)
    (data_root.parent / "outside").mkdir()
    (data_root.parent / "outside" / "a.jsonl").write_bytes(TEXT)
    (data_root / "link.jsonl").symlink_to(data_root.parent / "outside.jsonl")
    (data_root / "dir").symlink_to(data_root.parent / "outside")
    with pytest.raises(InputError, match=r"leads out of|no path inside"):
        resolve([{"local": name}])


def test_what_cannot_be_had_says_what_was_tried(monkeypatch, site):
    address, _ = site
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    with pytest.raises(MissingError) as error:
        resolve([{"local": "a.jsonl"}, {"path": "nowhere/b.jsonl"}, {"url": f"{address}/c", "sha256": SHA}])
    message = str(error.value)
    for part in ("SPARSEBENCH_DATA is not set", "path:nowhere/b.jsonl does not exist", f"{address}/c cannot", "404"):
        assert part in message
    with pytest.raises(MissingError, match="SPARSEBENCH_DATA is not set"):
        resolve([{"local": "a.jsonl"}])


@pytest.mark.parametrize(
    "alternatives",
    [
        [],
        {"local": "a"},
        "local: a",
        ["a.jsonl"],
        [{}],
        [{"local": "a", "embedded": "facts"}],
        [{"local": "a", "revision": "b"}],
        [{"local": 3}],
        [{"local": []}],
        [{"local": ["a", 3]}],
        [{"url": "https://host/file"}],
        [{"url": "ftp://host/file", "sha256": SHA}],
        [{"hf": "org/name", "file": "a", "split": "test"}],
        [{"hf": "org/name", "file": "../a"}],
        [{"hf": "not a name"}],
        [{"pypi": "package#file"}],
        [{"embedded": "nothing"}],
        [{"local": "there.jsonl"}, {"url": "https://host/file"}],
    ],
)
def test_malformed_sources_are_refused_before_any_is_tried(data_root, alternatives):
    (data_root / "there.jsonl").write_bytes(TEXT)
    with pytest.raises(InputError) as error:
        resolve(alternatives)
    assert not isinstance(error.value, MissingError)
    assert error.value.hint


def test_urls_are_fetched_once_and_checked(site, cache):
    address, asked = site
    alternative = {"url": f"{address}/rows.jsonl?download=1", "sha256": SHA.upper()}
    found = resolve([alternative])
    assert found.rows() == ROWS
    assert found.sha256 == SHA
    assert found.paths[0].name == "rows.jsonl"
    assert resolve([alternative]) == found
    assert asked == ["/rows.jsonl?download=1"]

    found.paths[0].write_bytes(b"changed")
    assert resolve([alternative]).rows() == ROWS
    assert len(asked) == 2

    with pytest.raises(IntegrityError, match="expected 0000"):
        resolve([{**alternative, "sha256": "0" * 64}])
    with pytest.raises((MissingError, IntegrityError)):
        resolve([{"url": f"{address}/short.jsonl", "sha256": hashlib.sha256(TEXT + b"0123456789").hexdigest()}])
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {"rows.jsonl"}


def test_members_of_wheels(make_wheel):
    make_wheel("toy", "1", {"toy/rows.jsonl": TEXT})
    found = resolve([{"pypi": "toy==1#toy/rows.jsonl", "sha256": SHA}])
    assert found.source == "pypi:toy==1#toy/rows.jsonl"
    assert found.rows() == ROWS
    assert locate("pypi:toy==1#toy").path.joinpath("rows.jsonl").read_bytes() == TEXT


def test_paths(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(TEXT)
    assert resolve([{"path": str(tmp_path / "rows.jsonl")}]).rows() == ROWS
    assert locate(f"path:{tmp_path}").path == tmp_path
    with pytest.raises(MissingError, match="does not exist"):
        locate(f"path:{tmp_path}/nothing")


def test_embedded_data_is_named_by_its_rows():
    found = resolve([{"embedded": "documentation"}])
    assert found.paths == ()
    assert found.embedded == "documentation"
    assert found.source.startswith("embedded:documentation@")
    assert found.sha256 == content_hash(found.rows())
    with pytest.raises(MissingError, match="depend on the versions"):
        resolve([{"embedded": "documentation", "sha256": "0" * 64}])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache with one data set and one model in it, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"

    def add(folder: str, files: dict[str, bytes]) -> Path:
        snapshot = cache / folder / "snapshots" / commit
        for name, content in files.items():
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(content)
        (cache / folder / "refs").mkdir()
        (cache / folder / "refs" / "main").write_text(commit)
        return snapshot

    add("datasets--org--rows", {"data/test.jsonl": TEXT, "data/train.jsonl": b"{}\n"})
    add("models--org--model", {"config.json": b"{}", "model.safetensors": b"w"})
    return commit


def test_the_hub_offline(hub):
    found = resolve([{"hf": "org/rows", "file": "data/test.jsonl"}])
    assert found.rows() == ROWS
    assert found.source == f"hf:org/rows@{hub}#data/test.jsonl"
    assert len(resolve([{"hf": "org/rows", "revision": "main", "file": "data/*.jsonl"}]).rows()) == 3
    with pytest.raises(MissingError, match="has no"):
        resolve([{"hf": "org/rows", "subset": "main", "split": "test"}])
    with pytest.raises(MissingError) as error:
        resolve([{"hf": "org/other", "file": "a.jsonl"}])
    assert "hf:org/other is not to be had" in error.value.message
    assert "hf download org/other --repo-type dataset" in str(error.value.hint)
    with pytest.raises(MissingError, match="hf:org/rows@v2"):
        resolve([{"hf": "org/rows", "revision": "v2", "file": "data/test.jsonl"}])

    located = locate("hf:org/model")
    assert located.path.joinpath("config.json").is_file()
    assert located.source == f"hf:org/model@{hub}"
    assert locate("hf:org/model#config.json").path.name == "config.json"
    with pytest.raises(MissingError):
        locate("hf:org/absent")
