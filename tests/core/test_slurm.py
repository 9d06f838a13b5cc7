"""The SLURM script, with `srun` and `scontrol` that do what the real ones would."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"


@pytest.fixture
def cluster(tmp_path):
    """Commands that note how they were called; `sparsebench` leaves with the code in CODE."""
    commands = {
        "srun": '"$@"',
        "scontrol": 'echo "scontrol $*" >> "$CALLS"',
        "sparsebench": 'echo "sparsebench $* OMP=$OMP_NUM_THREADS" >> "$CALLS"; exit "$CODE"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(code=0, **variables):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_JOB_ID": "77"}
        found = {**os.environ, **slurm, **variables, "CODE": str(code), "CALLS": str(calls)}
        found["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run([SCRIPT, "kick", "/shared/out", "--limit", "5"], env=found, capture_output=True)
        return done.returncode, calls.read_text().splitlines()

    return run


def test_each_task_runs_its_part(cluster):
    code, calls = cluster(SLURM_CPUS_PER_TASK="4")
    assert code == 0
    assert calls == ["sparsebench run kick --out /shared/out --shard 3/8 --no-site --limit 5 OMP=4"]
    assert "--shard 3/12 " in cluster(PARTS="12", SLURM_ARRAY_TASK_COUNT="2")[1][0]


def test_a_part_that_was_told_to_stop_is_queued_again_and_a_failed_one_is_not(cluster):
    assert cluster(code=130)[1][1:] == ["scontrol requeue 77_3"]
    code, calls = cluster(code=3)
    assert (code, len(calls)) == (3, 1)
