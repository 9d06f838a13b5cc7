"""Generated rows, made once and kept in the cache: fitting samples to an exact length takes seconds a task.

They are kept under a name for everything that they follow from, so that nothing has to say when they are stale: what
was asked for, the tokenizer, the code that makes them and the Python whose documentation they are made of.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sparsebench.data import embedded
from sparsebench.data.cache import cache_folder, publish, staging
from sparsebench.errors import InputError

Row = dict[str, Any]


def kept(module: str, options: dict[str, Any], tokenizer: Any, make: Callable[[], list[Row]]) -> list[Row]:
    """What `make` gives, or gave once.

    Args:
        module: Of `data.embedded`, which makes the rows.
        options: What it is asked for.
        tokenizer: What measures them; rows of one that cannot say all that it does are made each time.
        make: Makes them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return make()
    try:
        asked = json.dumps(options, sort_keys=True)
    except (TypeError, ValueError):
        return make()  # it will say what is wrong with them
    parts = [module, asked, type(tokenizer).__qualname__, backend.to_str(), _code(), sys.version]
    place = cache_folder() / "made" / f"{sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json.gz"
    with suppress(OSError, ValueError, EOFError, zlib.error):
        rows: list[Row] = json.loads(gzip.decompress(place.read_bytes()))
        return rows
    text = json.dumps(make())
    with suppress(InputError, OSError), staging(place.parent) as aside:  # one that cannot be written costs time only
        (aside / "rows").write_bytes(gzip.compress(text.encode(), 1, mtime=0))
        publish(aside / "rows", place)
    made: list[Row] = json.loads(text)  # as they will be the next time
    return made


@cache
def _code() -> str:
    """A digest of the modules that make rows."""
    files = sorted(Path(embedded.__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
