"""python -m benchmarks [harness] [ranks] [reference] [import] [layers] [models]: each in its own process, in turn.

What is imported at the top is imported again by every process that torch.multiprocessing spawns, so it is little.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

SECTIONS: Final = {
    "harness": "the suite beside a bare loop on persistent ranks, and beside one spawn per example",
    "ranks": "time to a verdict on a lost rank, to fresh ranks, and of a command that does nothing",
    "reference": "the truth: ms per example, and compilations",
    "import": "import torch_tp, on top of torch and torch.distributed",
    "layers": "column -> gelu -> row of torch_tp and of other libraries, beside the floor",
    "models": "parallelize on a large model without data, and training steps beside DTensor with a plan by hand",
}
_MODULES: Final = {name: f"benchmarks.{name}" for name in SECTIONS} | {"import": "benchmarks.imports"}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Medians and ratios from one run; no assertions.",
        epilog="\n".join(f"{name:<10} {text}" for name, text in SECTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("section", nargs="*", help=f"any of {', '.join(SECTIONS)}; all of them if none is named")
    parser.add_argument("--world-sizes", default="1,2,4", help="of harness, ranks, layers and models (default 1,2,4)")
    parser.add_argument("--blocks", type=int, default=9, help="of harness: the median is over so many (default 9)")
    parser.add_argument("--spawns", type=int, default=3, help="of harness: 0 leaves them out (default 3)")
    parser.add_argument("--repeats", type=int, default=7, help="of ranks, import and models (default 7)")
    parser.add_argument("--sizes", default="small,middle,large", help="of layers (default small,middle,large)")
    parser.add_argument("--seconds", type=float, default=20, help="of layers and models: at each P and size (20)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of layers (default cpu)")
    parser.add_argument("--out", help="of layers: write the ratios as a picture, an SVG, to this file")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.section if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}: give some of {', '.join(SECTIONS)}")
    sections = chosen.section or list(SECTIONS)
    if len(sections) == 1:
        importlib.import_module(_MODULES[sections[0]]).main(chosen)
        return 0
    rest = [word for word in arguments if word not in chosen.section]
    return max(subprocess.run([sys.executable, "-m", "benchmarks", name, *rest]).returncode for name in sections)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
