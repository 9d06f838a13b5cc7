"""Faults that are really done to runs, and what must hold afterwards. The tests do each at a few moments, the campaign in
`benchmarks/faults` at many.

A driver is a fork of this process, with all that it has imported, so that a moment costs about a second.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import math
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from sparsebench.errors import SparseBenchError
from sparsebench.store import Store
from sparsebench.suite_run import run_suite

PATIENCE = 120.0
"""Seconds after which a driver that does nothing is taken to hang."""
TIMES = ("seconds", "prepare_seconds", "prepare_memory", "peak_memory", "energy", "speed")
"""Fields of an outcome that may differ between two runs."""


@dataclass(frozen=True)
class Moment:
    """When a fault strikes: once so many cells are stored, and this much later."""

    cells: int
    delay: float

    @classmethod
    def draw(cls, random_: random.Random, cells: int) -> Moment:
        """A random moment of a run of so many cells."""
        return cls(random_.randrange(cells), random_.choice((0.0, random_.random() * 0.1)))


@dataclass
class Aftermath:
    """What a fault left, before and after the run was taken up again."""

    fault: str
    moment: Moment
    struck: bool = False
    """Whether the run was not over yet."""
    stored: int = 0
    """Cells that were stored when it had struck."""
    lost: int = 0
    """Cells that were stored and are gone, or that the run which went on left out."""
    doubled: int = 0
    """Cells that were stored and computed again."""
    damaged: int = 0
    """Cells that were visible and not whole."""
    unequal: int = 0
    """Cells that differ from the undisturbed run."""
    replanned: int = 0
    """Cells whose records say that memory ran out and the batch was halved: sums of floats were rounded otherwise."""
    left_behind: int = 0
    """Files that belong to no cell."""
    resumed_after: float = 0.0
    """Seconds from starting again to the first cell that was computed then; 0 where none was left."""
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled, damaged or changed."""
        return not (self.lost or self.doubled or self.damaged or self.unequal or self.left_behind or self.notes)


def essence(folder: Path) -> dict[str, tuple[bytes, str]]:
    """What must be equal between two runs, by cell: its samples, byte for byte, and its record without times."""
    found = {}
    for identity in Store(folder).ids():
        place = folder / "cells" / identity
        record = json.loads((place / "record.json").read_text())
        record["outcome"] = {k: v for k, v in record["outcome"].items() if k not in TIMES}
        samples = place / "samples.parquet"
        found[identity] = (
            samples.read_bytes() if samples.exists() else b"",
            json.dumps([record, json.loads((place / "spec.json").read_text())], sort_keys=True),
        )
    return found


def ages(folder: Path) -> dict[str, int]:
    """For each finished cell the file that holds its record: a cell that is stored again has another one."""
    store = Store(folder)
    return {i: (folder / "cells" / i / "record.json").stat().st_ino for i in store.ids() if store.finished(i)}


@dataclass
class Arena:
    """A suite with the results of an undisturbed run.

    Attributes:
        suite: Its YAML file.
        folder: Where runs are tried.
        expected: `essence` of the undisturbed run.
    """

    suite: Path
    folder: Path
    expected: dict[str, tuple[bytes, str]]
    tried: int = 0

    @classmethod
    def build(cls, suite: Path, folder: Path) -> Arena:
        """Run the suite undisturbed, as the drivers will: in a fork."""
        folder.mkdir(parents=True, exist_ok=True)
        run_suite(str(suite), folder / "warm")  # what is loaded and compiled now need not be in each fork
        undisturbed = folder / "undisturbed"
        driver = Driver(suite, undisturbed)
        if driver.wait():
            raise RuntimeError(f"the undisturbed run failed:\n{driver.said()}")
        return cls(suite, folder, essence(undisturbed))

    def out(self) -> Path:
        """A new results folder."""
        self.tried += 1
        return self.folder / f"run-{self.tried}"


class Driver:
    """A run in a process of its own."""

    def __init__(
        self,
        suite: Path,
        out: Path,
        prepare: Callable[[], None] = lambda: None,
        logs: Path | None = None,
        **options: Any,
    ) -> None:
        self.out = out
        self.log = (logs or out.parent) / f"{out.name}.{time.monotonic_ns()}.log"
        self.computed = self.log.with_suffix(".computed")
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(suite, prepare, options)
            finally:
                os._exit(70)  # whatever happens: there must not be two of the parent

    def _run(self, suite: Path, prepare: Callable[[], None], options: dict[str, Any]) -> None:
        code = 70
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(os.dup(log), "w", buffering=1)  # a test's are elsewhere
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            os.environ["OMP_NUM_THREADS"] = "1"  # of workers: sums of floats depend on it
            gc.freeze()  # what the parent made needs no collecting here
            unshare_progress_lock()
            self._note_writes()
            prepare()
            if "command" in options:
                from sparsebench import cli

                sys.argv = ["sparsebench", *options["command"]]
                cli.main()
            outcome = run_suite(str(suite), self.out, **options)
            code = 3 if outcome.failed else 130 if outcome.interrupted else 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        except SparseBenchError as error:
            print(error)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)

    def _note_writes(self) -> None:
        real = Store.write
        note = os.open(self.computed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def write(store: Store, spec: Any, record: Any, environment: Any, samples: Any) -> Any:
            stored = real(store, spec, record, environment, samples)
            os.write(note, f"{time.monotonic()} {record.cell}\n".encode())
            return stored

        Store.write = write  # type: ignore[method-assign]

    def stored(self) -> int:
        """Cells in the folder."""
        try:
            return sum(not name.startswith(".") for name in os.listdir(self.out / "cells"))
        except FileNotFoundError:
            return 0

    def until(self, moment: Moment) -> bool:
        """Wait for a moment; False where the run ended before it."""
        deadline = time.monotonic() + PATIENCE
        while self.stored() < moment.cells or (moment.cells == 0 and not (self.out / "cells").exists()):
            if self.over():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"the driver hangs:\n{self.said()}")
            time.sleep(0.001)
        time.sleep(moment.delay)
        return not self.over()

    def over(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + PATIENCE
        while not self.over():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"the driver hangs:\n{self.said()}")
            time.sleep(0.002)
        return self.code or 0

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def workers(self) -> list[int]:
        """Its worker processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and b"sparsebench.worker" in (path.parent / "cmdline").read_bytes():
                    found.append(int(path.parent.name))
            except (OSError, IndexError):
                continue
        return found

    def said(self) -> str:
        """What it wrote to its standard output and error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def cells_written(self) -> list[tuple[float, str]]:
        """When it stored which cell."""
        lines = self.computed.read_text().splitlines() if self.computed.exists() else []
        return [(float(at), cell) for at, cell in (line.split() for line in lines)]


def unshare_progress_lock() -> None:
    """Give progress bars a lock of this process: their own is one of all forks, which one killed within it holds for ever."""
    lock, kinds = threading.RLock(), [tqdm]
    for kind in kinds:
        kind.set_lock(lock)
        kinds += kind.__subclasses__()


def gone(pid: int, patience: float = 20.0) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def aftermath(
    arena: Arena,
    fault: str,
    moment: Moment,
    out: Path,
    *,
    struck: bool,
    spoiled: int = 0,
    logs: Path | None = None,
) -> Aftermath:
    """Take the run up again, undisturbed, and compare.

    Args:
        arena: The suite.
        fault: For the table.
        moment: When it struck.
        out: The folder that it left.
        struck: Whether it struck before the run was over.
        spoiled: Stored cells that the fault itself damaged, which are to be computed again.
        logs: Where the driver writes what it says.
    """
    found = Aftermath(fault, moment, struck)
    before = ages(out) if out.exists() else {}
    found.stored = len(before)
    found.damaged = max(0, len(Store(out).damaged()) - spoiled)
    start = time.monotonic()
    driver = Driver(arena.suite, out, logs=logs)
    if code := driver.wait():
        found.notes.append(f"going on left with {code}: {driver.said()[-400:]}")
    written = driver.cells_written()
    found.resumed_after = written[0][0] - start if written else 0.0
    compare(arena, found, out, before, Counter(cell for _, cell in written))
    return found


def compare(arena: Arena, found: Aftermath, out: Path, before: dict[str, int], written: Counter[str]) -> None:
    """Fill in what the finished folder says."""
    after, results = ages(out), essence(out)
    found.lost = len(arena.expected.keys() - after.keys()) + len(before.keys() - after.keys())
    found.doubled = sum(after.get(i) != inode for i, inode in before.items()) + sum(n - 1 for n in written.values())
    other = [i for i, essence_ in arena.expected.items() if i in results and results[i] != essence_]
    found.replanned = sum(_rounded_otherwise(arena, out, i) for i in other)
    found.unequal = len(other) - found.replanned + len(results.keys() - arena.expected.keys())
    strays = [p for p in (out / "cells").iterdir() if p.name not in {*results, ".leases", ".whole"}]
    strays += [p for p in (out / "cells").glob("*/.*")] + [p for p in out.glob(".suite.json*")]
    found.left_behind = len(strays)


def _rounded_otherwise(arena: Arena, out: Path, identity: str) -> bool:
    """Whether a cell ran in smaller batches, says so, and differs in the last digits of its values alone."""
    cell = Store(out).read(identity)
    expected = json.loads(arena.expected[identity][1])[0]["outcome"]
    outcome = cell.record.outcome
    values = [m.value for m in outcome.metrics], [m["value"] for m in expected["metrics"]]
    return (
        cell.environment.batch_replans > 0
        and outcome.counters == expected["counters"]
        and len(values[0]) == len(values[1])
        and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(*values, strict=True))
    )


def driver_killed(arena: Arena, moment: Moment) -> Aftermath:
    """kill -9 of a run in one process."""
    driver = Driver(arena.suite, arena.out())
    struck = driver.until(moment)
    if struck:
        driver.signal(signal.SIGKILL)
    driver.wait()
    return aftermath(arena, "kill -9 of the driver", moment, driver.out, struck=struck)


def driver_of_workers_killed(arena: Arena, moment: Moment) -> Aftermath:
    """kill -9 of a driver that has workers: they end by themselves, and store nothing after it went on."""
    driver = Driver(arena.suite, arena.out(), executor="process", workers=1)
    struck = driver.until(moment)
    workers = driver.workers()
    if struck:
        driver.signal(signal.SIGKILL)
    driver.wait()
    found = aftermath(arena, "kill -9 of a driver with workers", moment, driver.out, struck=struck)
    if not all(gone(pid) for pid in workers):
        found.notes.append("a worker outlived its driver")
    return found


def worker_killed(arena: Arena, moment: Moment) -> Aftermath:
    """kill -9 of a worker: the driver goes on by itself."""
    driver = Driver(arena.suite, arena.out(), executor="process", workers=1)
    struck = driver.until(moment)
    if struck:
        for pid in driver.workers():
            os.kill(pid, signal.SIGKILL)
    found = Aftermath("kill -9 of a worker", moment, struck, stored=driver.stored())
    before = ages(driver.out)
    start = time.monotonic()
    if code := driver.wait():
        found.notes.append(f"the driver left with {code}: {driver.said()[-400:]}")
    found.resumed_after = time.monotonic() - start
    compare(arena, found, driver.out, before, Counter())
    return found


def worker_out_of_memory(arena: Arena, moment: Moment) -> Aftermath:
    """A worker that gets no more memory from one moment on."""
    driver = Driver(arena.suite, arena.out(), executor="process", workers=1)
    struck = driver.until(moment)
    if struck:
        for pid in driver.workers():
            try:
                size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
                resource.prlimit(pid, resource.RLIMIT_AS, (size + (1 << 16), resource.RLIM_INFINITY))
            except (OSError, ValueError):
                continue
    if driver.wait() not in (0, 3):
        return Aftermath(
            "out of memory in a worker", moment, notes=[f"left with {driver.code}: {driver.said()[-400:]}"]
        )
    return aftermath(arena, "out of memory in a worker", moment, driver.out, struck=struck)


def file_size_limit(arena: Arena, moment: Moment) -> Aftermath:
    """No file may grow beyond some bytes from one moment on: writes stop half-way, as on a full disk."""
    driver = Driver(arena.suite, arena.out())
    struck = driver.until(moment)
    if struck:
        resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    code = driver.wait()
    found = aftermath(arena, "a write that stops half-way", moment, driver.out, struck=struck)
    if code not in (0, 2) or (code == 2 and "cannot write results" not in driver.said()):
        found.notes.append(f"left with {code}: {driver.said()[-400:]}")
    return found


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of two megabytes.

    Raises:
        PermissionError: This process may not mount one.
    """
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_full(arena: Arena, moment: Moment) -> Aftermath:
    """A disk that fills up; the run goes on once there is room again."""
    with small_disk(arena.out()) as disk:
        driver = Driver(arena.suite, disk / "results", logs=arena.folder)
        struck = driver.until(moment)
        if struck:
            with (disk / "filler").open("wb", buffering=0) as filler:
                for size in (1 << 16, 1 << 10):
                    try:
                        while filler.write(b"\0" * size):
                            pass
                    except OSError:
                        continue
        code = driver.wait()
        (disk / "filler").unlink(missing_ok=True)
        found = aftermath(arena, "a full disk", moment, driver.out, struck=struck, logs=arena.folder)
        if code not in (0, 2) or (code == 2 and "cannot write results" not in driver.said()):
            found.notes.append(f"left with {code}: {driver.said()[-400:]}")
        return found


def without_root_rights() -> None:
    """Give up the right to write where the permissions of a folder forbid it.

    Raises:
        PermissionError: It cannot be given up on this platform.
    """
    number = {"x86_64": 126, "aarch64": 91}.get(platform.machine())
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    rights = (ctypes.c_uint32 * 6)()
    if number is None or ctypes.CDLL(None).syscall(number, header, rights):
        raise PermissionError("root rights cannot be given up here")


def folder_read_only(arena: Arena, moment: Moment) -> Aftermath:
    """A results folder that becomes read-only."""
    driver = Driver(arena.suite, arena.out(), prepare=without_root_rights)
    cells = driver.out / "cells"
    struck = driver.until(moment)
    if struck:
        cells.chmod(0o555)
    code = driver.wait()
    cells.chmod(0o755)
    found = aftermath(arena, "a folder that becomes read-only", moment, driver.out, struck=struck)
    if code not in (0, 2) or (code == 2 and "cannot write results" not in driver.said()):
        found.notes.append(f"left with {code}: {driver.said()[-400:]}")
    return found


def two_drivers(arena: Arena, moment: Moment) -> Aftermath:
    """Two runs on one folder, of which the first is killed; the second does all that is left."""
    out = arena.out()
    first, second = Driver(arena.suite, out), Driver(arena.suite, out)
    struck = first.until(moment)
    if struck:
        first.signal(signal.SIGKILL)
    first.wait()
    code = second.wait()
    found = Aftermath("two drivers on one folder", moment, struck, stored=len(first.cells_written()))
    if code:
        found.notes.append(f"the second left with {code}: {second.said()[-400:]}")
    compare(arena, found, out, {}, Counter(c for d in (first, second) for _, c in d.cells_written()))
    return found


def file_half_written(arena: Arena, moment: Moment) -> Aftermath:
    """A stored file that was cut short, emptied, or overwritten in part."""
    driver = Driver(arena.suite, arena.out())
    struck = driver.until(moment)
    if struck:
        driver.signal(signal.SIGKILL)
    driver.wait()
    random_ = random.Random(f"{moment}")
    files = sorted(p for p in driver.out.glob("cells/[0-9a-f]*/*") if p.is_file())
    spoiled = 0
    if files:
        time.sleep(0.02)  # the times of files go by ticks: an edit has another one than what it edits
        path = random_.choice(files)
        content = path.read_bytes()
        cut = random_.randrange(len(content))
        rest = random_.choice((b"", b"\0" * (len(content) - cut)))
        path.write_bytes(content[:cut] + rest)
        spoiled = 1
    return aftermath(arena, "a half-written file", moment, driver.out, struck=struck, spoiled=spoiled)


def interrupted(arena: Arena, moment: Moment, times: int = 1) -> Aftermath:
    """Ctrl-C, through the command line: once finishes the cell in flight, twice stops; both say how to go on."""
    out = arena.out()
    command = ["run", str(arena.suite), "--out", str(out), "--no-site"]
    driver = Driver(arena.suite, out, command=command)
    struck = driver.until(moment)
    for _ in range(times if struck else 0):
        if not driver.over():
            driver.signal(signal.SIGINT)
            time.sleep(0.02)
    code = driver.wait()
    found = aftermath(arena, f"SIGINT {'once' if times == 1 else 'twice'}", moment, out, struck=struck)
    said = driver.said()
    if code not in (0, 130) or (code == 130 and found.stored and "the same command goes on" not in said):
        found.notes.append(f"left with {code}: {said[-400:]}")
    return found


def interrupted_twice(arena: Arena, moment: Moment) -> Aftermath:
    """Ctrl-C twice."""
    return interrupted(arena, moment, times=2)


CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

__attribute__((constructor)) static void start(void) {
  int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
  offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
}
int clock_gettime(clockid_t clock, struct timespec *at) {
  int code = syscall(SYS_clock_gettime, clock, at);
  if (clock == CLOCK_REALTIME && offset) at->tv_sec += *offset;
  return code;
}
int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
"""
"""Shifts the wall clock of a process by the seconds that a file holds; see LD_PRELOAD in ld.so(8)."""


def clock_jumps(arena: Arena, moment: Moment) -> Aftermath:
    """A wall clock that jumps by years, back and forth, from one moment on.

    Raises:
        FileNotFoundError: There is no C compiler.
    """
    source, library, shift = (arena.folder / name for name in ("clock.c", "clock.so", "clock.offset"))
    if not library.exists():
        source.write_text(CLOCK)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True, capture_output=True)
    shift.write_bytes(bytes(8))
    out = arena.out()
    environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(shift), "OMP_NUM_THREADS": "1"}
    code = "import sys; from sparsebench.cli import main; sys.argv[0] = 'sparsebench'; main()"
    command = [sys.executable, "-c", code, "run", str(arena.suite), "--out", str(out), "--no-site"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    random_ = random.Random(f"{moment}")
    jumps = 0
    while process.poll() is None:
        cells = len([p for p in out.glob("cells/*") if not p.name.startswith(".")])
        if cells >= moment.cells:
            jumps += 1
            with shift.open("r+b") as mapped:  # never cut short: the process has it mapped
                mapped.write(random_.randrange(-(10**9), 10**9).to_bytes(8, sys.byteorder, signed=True))
            time.sleep(0.02)
        time.sleep(0.005)
    _, said = process.communicate()
    found = aftermath(arena, "a clock that jumps", moment, out, struck=jumps > 0)
    years = {c.environment.started[:4] for c in Store(out)}
    if process.returncode or not jumps or (moment.cells == 0 and len(years) < 2):
        found.notes.append(f"left with {process.returncode} after {jumps} jumps, in the years {years}: {said[-400:]}")
    return found


def ray_head_killed(arena: Arena, moment: Moment) -> Aftermath:
    """kill -9 of the head of a local Ray cluster; the run cannot go on, the next one does.

    Raises:
        FileNotFoundError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise FileNotFoundError("Ray is not installed")
    driver = Driver(arena.suite, arena.out(), executor="ray", workers=1)
    struck = driver.until(moment)
    family = descendants(driver.pid)
    heads = [pid for pid, name in family.items() if "gcs_server" in name or "raylet" in name]
    for pid in heads if struck else []:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not driver.over() and time.monotonic() < deadline:
        time.sleep(0.01)
    if not driver.over():
        driver.signal(signal.SIGKILL)
    driver.wait()
    found = aftermath(arena, "kill -9 of Ray's head", moment, driver.out, struck=struck)
    for pid in family:
        if not gone(pid, 10.0):
            os.kill(pid, signal.SIGKILL)
    if struck and not heads:
        found.notes.append("the head was not found")
    return found


def descendants(pid: int) -> dict[int, str]:
    """Processes below a process, with their command lines."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found: dict[int, str] = {}
    for each in parents:
        above = parents.get(each)
        while above and above != pid:
            above = parents.get(above)
        if above == pid:
            try:
                found[each] = Path(f"/proc/{each}/cmdline").read_text(errors="replace")
            except OSError:
                continue
    return found


FAULTS: dict[str, Callable[[Arena, Moment], Aftermath]] = {
    fault.__name__: fault
    for fault in (
        driver_killed,
        driver_of_workers_killed,
        worker_killed,
        worker_out_of_memory,
        ray_head_killed,
        disk_full,
        file_size_limit,
        folder_read_only,
        two_drivers,
        file_half_written,
        clock_jumps,
        interrupted,
        interrupted_twice,
    )
}


def write_suite(folder: Path, model: str) -> Path:
    """A suite of a dozen short cells on a tiny model, and one of lexical search."""
    from small_tasks import write_tasks

    folder.mkdir(parents=True, exist_ok=True)
    write_tasks(folder)
    data = {
        "suite": "faults",
        "version": 1,
        "systems": {"stories": {"model": model, "dtype": "float32"}, "lexical": {"kind": "lexical"}},
        "grids": [
            {
                "name": "weights",
                "system": "stories",
                "tasks": [str(folder / f"tiny-{name}.yaml") for name in ("choice", "perplexity")],
                "methods": [
                    {"method": "random-weights", "budgets": {"sparsity": [0.3, 0.5]}, "seeds": [0, 1]},
                    {"method": "magnitude", "budgets": {"sparsity": 0.2}},
                ],
            },
            {
                "name": "search",
                "system": "lexical",
                "baseline": "bm25",
                "tasks": [str(folder / "tiny-search.yaml")],
                "methods": ["bm25"],
            },
        ],
        "conclude": {"resamples": 100},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
