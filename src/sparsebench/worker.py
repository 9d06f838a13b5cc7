"""`python -m sparsebench.worker`: a worker of the process executor."""

from __future__ import annotations

import os
import signal
import sys

from sparsebench.process_workers import serve


def main() -> None:
    """Serve until standard input ends. What libraries print goes to standard error; the driver reads the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, out)


if __name__ == "__main__":
    main()
