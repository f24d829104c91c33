"""What accelerators this machine has, asked in a process of its own so that the asking one need not import torch."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """How many GPUs torch sees; 0 without torch."""
    answer = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(answer.stdout) if answer.returncode == 0 else 0
