"""`python -m sparsebench.worker RESULTS DEVICE COMMAND`: a worker of the process executor."""

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
    _, results, device, command = sys.argv
    serve(results, device, command, sys.stdin, out)


if __name__ == "__main__":
    main()
