"""The suite on ranks that torchrun started: rank 0 reports, the others serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def attached(ranks: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*launch, "-m", "conformance", "attached", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_ranks_judge_their_world_size_only(tmp_path: Path) -> None:
    done = attached(2, tmp_path, "-k", "run-row-P2-float32 or refuse-row", "-q")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "row.forward.bias-once" in done.stdout
    assert "not run: world size 4: not in --world-sizes" in done.stdout


def test_a_number_of_ranks_that_no_item_has_is_refused(tmp_path: Path) -> None:
    done = attached(3, tmp_path)

    assert done.returncode != 0
    assert "WORLD_SIZE='3': start 1, 2 or 4 ranks with torchrun --nproc-per-node" in done.stderr
