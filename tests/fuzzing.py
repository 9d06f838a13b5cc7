"""Hostile and damaged input of every kind, and what must hold: a result or one of our errors, and nothing else.

An input is made from a valid one by a few random changes: of its bytes, of its lines, or of the values in it. Its kind and
number are all it takes to make it again. The tests try some thousands, the campaign in `benchmarks/fuzz` tens of
thousands.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import tarfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparsebench.errors import SparseBenchError

PATIENCE = 20
"""Seconds after which an input is taken to hang."""
WORDS = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\t", b"{{", b"}}", b"!!python/object/apply:os.system [id]", b"!function x"),
    *(b"&a [*a]", b"<<: *a", b"- - - -", b"NaN", b"-inf", b"1e999", b"0x7fffffff", b"18446744073709551616", b"-1", b"null", b"~"),
    *(b"../../../etc/passwd", b"/dev/zero", b"<script>alert(1)</script>", b"\xe2\x80\xae", b"%s%n", b"${HOME}", b"'; DROP"),
    *(b"trust_remote_code: true", b"class: os.system", b"include: task.yaml", b"hf:a/b", b"pypi:a==1#../x", b"https://0.0.0.0/"),
)  # fmt: skip
"""Pieces that mean something to a parser, a shell, a browser or a file system."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, -1e308, 5e-324),
    *("", " ", "0", "*", "..", "../../x", "/etc/passwd", "a" * 5000, "\u202e\u0000\ud7ff", "<img src=x onerror=alert(1)>", "NaN"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"a": {"a": 1}}}, [0] * 300, {"function": "os.system"}),
)  # fmt: skip
"""Values in the place of others."""


class Hang(BaseException):
    """An input took too long; no `except Exception` may swallow that."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: Its name.
        seeds: Valid inputs.
        feed: Give one to the code that reads it; the folder is empty but for what it writes there itself.
        mutate: How a seed is changed.
        share: How many of a hundred inputs are of this kind.
    """

    name: str
    seeds: tuple[bytes, ...]
    feed: Callable[[bytes, Path], object]
    mutate: Callable[[bytes, random.Random], bytes]
    share: int

    def input(self, number: int) -> bytes:
        """The input with that number."""
        random_ = random.Random(f"{self.name} {number}")
        return self.mutate(random_.choice(self.seeds), random_)


@dataclass(frozen=True)
class Finding:
    """An input that did what none may do."""

    kind: str
    number: int
    what: str
    where: str


def change_bytes(seed: bytes, random_: random.Random) -> bytes:
    """A few pieces flipped, cut, doubled, moved or put in."""
    data = bytearray(seed)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(data) + 1)
        end = min(len(data), at + random_.choice((1, 1, 2, 8, 64, 1024)))
        match random_.randrange(7):
            case 0:
                data[at:end] = random_.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * random_.choice((1, 2, 50))
            case 3:
                data[at:at] = random_.choice(WORDS)
            case 4:
                data = data[:at]
            case 5:
                data[at:end] = random_.choice((b"\0", b"\xff", b"\x7f")) * (end - at)
            case _:
                size = random_.choice((1, 2, 4, 8))
                value = random_.choice(
                    (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), random_.randrange(2 ** (8 * size)))
                )
                data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


def change_data(data: Any, random_: random.Random) -> Any:
    """A few values of nested lists and mappings replaced, removed, renamed or doubled."""
    data = copy.deepcopy(data)
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        places = list(_places(data))
        if not places:
            return random_.choice(VALUES)
        holder, key = random_.choice(places)
        match random_.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(random_.choice(VALUES))] = holder.pop(key)
            case 1 | 2 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 3:
                other, place = random_.choice(places)
                with contextlib.suppress(LookupError):
                    holder[key] = copy.deepcopy(other[place])
            case _:
                holder[key] = copy.deepcopy(random_.choice(VALUES))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield data, key
        yield from _places(data[key])


def _dumped_json(data: Any, random_: random.Random) -> bytes:
    return json.dumps(data, ensure_ascii=random_.random() < 0.5).encode("utf-8", "surrogatepass")


def change_json(seed: bytes, random_: random.Random) -> bytes:
    """Values changed more often than bytes."""
    if random_.random() < 0.3:
        return change_bytes(seed, random_)
    return _dumped_json(change_data(json.loads(seed), random_), random_)


def change_lines(seed: bytes, random_: random.Random) -> bytes:
    """Lines of JSON."""
    lines = seed.splitlines()
    if random_.random() < 0.5 or not lines:
        return change_bytes(seed, random_)
    at = random_.randrange(len(lines))
    lines[at] = change_json(lines[at], random_) if lines[at].startswith(b"{") else change_bytes(lines[at], random_)
    return b"\n".join(lines) + b"\n"


def change_yaml(seed: bytes, random_: random.Random) -> bytes:
    """Values changed more often than text."""
    if random_.random() < 0.4:
        return change_bytes(seed, random_)
    changed = change_data(yaml.safe_load(seed), random_)
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=random_.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def change_archive(seed: bytes, random_: random.Random) -> bytes:
    """An archive's bytes, or its members: hostile names and kinds, files changed inside."""
    if random_.random() < 0.4:
        return change_bytes(seed, random_)
    names = ("../evil", "/tmp/evil", "cells/../../evil", "cells/0123456789abcdef/../x", "suite.json/x", "a\0b", "cells")
    sink = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(seed), mode="r:xz") as old,
        tarfile.open(fileobj=sink, mode="w:xz", preset=0) as new,
    ):
        members = [(member, (old.extractfile(member) or io.BytesIO()).read()) for member in old]
        chosen = random_.randrange(len(members))
        for i, (member, content) in enumerate(members):
            if i == chosen:
                match random_.randrange(5):
                    case 0:
                        member.name = random_.choice(names)
                    case 1:
                        member.type, member.linkname = (
                            random_.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)),
                            random_.choice(names),
                        )
                        member.size, content = 0, b""
                    case 2:
                        member.type = random_.choice((tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
                        member.size, content = 0, b""
                    case _:
                        content = (
                            change_json(content, random_)
                            if member.name.endswith("json")
                            else change_bytes(content, random_)
                        )
                        member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def attempt(kind: Kind, number: int, folder: Path) -> tuple[str, Finding | None]:
    """Feed one input: `result` or `refused`, and what went wrong if anything did.

    Args:
        kind: What it is.
        number: Which.
        folder: An empty folder, and nothing else in the folder around it.
    """

    def ring(signum: int, frame: object) -> None:
        raise Hang

    data = kind.input(number)
    before = set(folder.parent.iterdir())
    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    said, finding = "result", None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            kind.feed(data, folder)
    except SparseBenchError as error:
        said = "refused"
        if not error.message.strip():
            finding = Finding(kind.name, number, "an error without words", type(error).__name__)
    except Hang:
        finding = Finding(kind.name, number, f"more than {PATIENCE} s", "")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "sparsebench" in f.filename]
        where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
        finding = Finding(kind.name, number, f"{type(error).__name__}: {str(error)[:200]}", where)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    strays = set(folder.parent.iterdir()) - before
    left = [path.name for path in folder.rglob(".*") if path.is_dir()]
    if finding is None and (strays or left):
        finding = Finding(
            kind.name, number, "files outside its folder, or half-made folders", f"{sorted(strays)} {left}"
        )
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return said, finding


def kinds(folder: Path) -> list[Kind]:
    """Every kind, with seeds made in `folder`."""
    from fuzzed_kinds import all_kinds

    return all_kinds(folder)


def plan(kinds_: list[Kind], count: int) -> Iterator[tuple[Kind, int]]:
    """So many inputs, by the shares of their kinds."""
    whole = sum(kind.share for kind in kinds_)
    for kind in kinds_:
        for number in range(max(1, round(count * kind.share / whole))):
            yield kind, number
