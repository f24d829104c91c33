"""What `import torch_tp` costs a program that has imported torch and torch.distributed: in fresh processes."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from typing import Final

from benchmarks.table import print_table

_PROGRAM: Final = """
import time
began = time.perf_counter()
import torch, torch.distributed
between = time.perf_counter()
import torch_tp
print(between - began, time.perf_counter() - between)
"""


def main(chosen: argparse.Namespace) -> None:
    rows = [_measured() for _ in range(chosen.repeats + 1)][1:]  # the first one warms the disk
    torch, mine = ([row[i] * 1000 for row in rows] for i in range(2))
    print_table(
        f"import, {chosen.repeats} fresh processes",
        ["what", "median ms", "worst ms", "goal"],
        [
            ["torch, torch.distributed", f"{statistics.median(torch):.0f}", f"{max(torch):.0f}", ""],
            ["torch_tp on top of them", f"{statistics.median(mine):.1f}", f"{max(mine):.1f}", "< 60 ms"],
        ],
    )


def _measured() -> tuple[float, float]:
    answer = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    first, second = map(float, answer.stdout.split())
    return first, second
