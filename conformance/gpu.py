"""The suite on GPUs: `python -m conformance.gpu [pytest's arguments]`, which is what `tox -e gpu` runs.

NCCL wants one GPU per rank, so it runs the world sizes up to the number of GPUs. The other world sizes run over gloo,
which takes CUDA tensors through the host and lets ranks share a GPU. First both are asked what they can move. JAX
stays on the CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conformance.devices import gpu_count
from conformance.probe import DTYPES, OK, Answers, Question, probe, table

WORLDS: Final = (1, 2, 4)
NO_GPU: Final = "conformance.gpu: torch sees no GPU here, so nothing was run; `pytest conformance` runs on the CPU"
USAGE_ERROR: Final = 2
# Without these no layer can be checked; what an implementation calls beyond them is in the probe's table.
NEEDED: Final = ("all-reduce", "all-gather")
_GLOO_PROBED: Final = 2
# Some containers set them; they turn TF32 on, under which float32 is not float32.
_TF32: Final = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")


@dataclass(frozen=True)
class SuiteRun:
    """One run of the suite: a backend, its world sizes, and the (world size, dtype) that are left out."""

    backend: str
    worlds: tuple[int, ...]
    without: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        kind = "one GPU per rank" if self.backend == "nccl" else "CUDA tensors through the host, ranks share GPUs"
        return f"{self.backend} ({kind}): world sizes {', '.join(map(str, self.worlds))}"


@dataclass(frozen=True)
class Plan:
    """What runs, and one line for each thing that does not."""

    runs: tuple[SuiteRun, ...]
    not_run: tuple[str, ...]


def places(gpus: int, worlds: Sequence[int] = WORLDS) -> list[tuple[str, int]]:
    """The (backend, world size) to probe."""
    nccl = [("nccl", world) for world in worlds if world <= gpus]
    return [*nccl, ("gloo", _GLOO_PROBED)] if gpus else []


def plan(gpus: int, answers: Answers, worlds: Sequence[int] = WORLDS) -> Plan:
    """What to run over which backend, given what the probe found."""
    chosen: dict[str, list[int]] = {}
    not_run: list[str] = [] if gpus else ["everything: torch sees no GPU"]
    for world in worlds if gpus else ():
        candidates = (["nccl"] if world <= gpus else []) + ["gloo"]
        backend = next((name for name in candidates if not _fault(answers, name, world, "float32")), "")
        for name in candidates[: candidates.index(backend)] if backend else candidates:
            not_run.append(f"world size {world} over {name}: {_fault(answers, name, world, 'float32')}")
        if backend:
            chosen.setdefault(backend, []).append(world)
    runs: list[SuiteRun] = []
    for backend in sorted(chosen, reverse=True):
        missing = {
            (world, dtype): fault
            for world in chosen[backend]
            for dtype in DTYPES
            if (fault := _fault(answers, backend, world, dtype))
        }
        not_run += [f"{dtype} at world size {world} over {backend}: {why}" for (world, dtype), why in missing.items()]
        runs.append(SuiteRun(backend, tuple(chosen[backend]), tuple(missing)))
    return Plan(tuple(runs), tuple(not_run))


def _fault(answers: Answers, backend: str, world: int, dtype: str) -> str:
    """The probe's line of the first needed collective that cannot move this dtype, or an empty string."""
    probed = world if backend == "nccl" else _GLOO_PROBED
    for collective in NEEDED:
        answer = answers.get(Question(backend, probed, collective, dtype), "not probed")
        if answer != OK:
            return f"{collective} {dtype}: {answer}"
    return ""


def arguments_of(run: SuiteRun, given: Sequence[str]) -> list[str]:
    """pytest's arguments for one run; items of a dtype that is left out are deselected by their ids."""
    fixed = ["--backend", run.backend, "--device", "cuda", "--world-sizes", ",".join(map(str, run.worlds))]
    rest, expression = _without_expression(given)
    names = [name for world, dtype in run.without for name in _names(world, dtype)]
    if names:
        ours = f"not ({' or '.join(names)})"
        expression = f"({expression}) and {ours}" if expression else ours
    return [str(Path(__file__).parent), *fixed, *rest, *(["-k", expression] if expression else [])]


def _names(world: int, dtype: str) -> list[str]:
    """Parts of the ids of the items that run this dtype in this many ranks, as conformance.items writes them."""
    ranks = [f"P{world}", *(f"P{size}of{world}" for size in WORLDS if size < world)]
    return [f"{part}-{kind}" for part in ranks for kind in (dtype, f"autocast-{dtype}")]


def _without_expression(given: Sequence[str]) -> tuple[list[str], str]:
    """The arguments without pytest's -k, and what -k said."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-k", dest="expression", default="")
    known, rest = parser.parse_known_args(given)
    return rest, known.expression


def _without_report(given: Sequence[str]) -> tuple[list[str], str]:
    """The arguments without --report, whose folder gets one of its own for each run and the page of all."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", default="")
    known, rest = parser.parse_known_args(given)
    return rest, known.report


def _choose_worlds(given: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
    """pytest's arguments, and the world sizes asked for; what is chosen here cannot be given."""
    parser = argparse.ArgumentParser(prog="python -m conformance.gpu", add_help=False, allow_abbrev=False)
    parser.add_argument("--world-sizes", default=",".join(map(str, WORLDS)))
    for name in ("--backend", "--device"):
        parser.add_argument(name)
    known, rest = parser.parse_known_args(given)
    if known.backend or known.device:
        parser.error("it chooses --backend and --device itself; to choose them, run `pytest conformance`")
    words = known.world_sizes.split(",")
    if set(words) - set(map(str, WORLDS)):
        parser.error(f"--world-sizes {known.world_sizes}: give some of 1, 2, 4, separated by commas")
    return rest, tuple(sorted({int(word) for word in words}))


def main(given: Sequence[str]) -> int:
    """Probe, say what will run, run it; the worst exit code of the runs, 1 if nothing could run, 2 without a GPU."""
    rest, worlds = _choose_worlds(given)
    rest, report = _without_report(rest)
    gpus = gpu_count()
    if not gpus:
        print(NO_GPU, file=sys.stderr)
        return USAGE_ERROR
    answers = probe(places(gpus, worlds), "cuda")
    chosen = plan(gpus, answers, worlds)
    print("\n".join([f"{gpus} GPU{'s' if gpus > 1 else ''}; what the backends can move:", *table(answers)]))
    print("\n".join([*(f"runs: {run}" for run in chosen.runs), *(f"not run: {line}" for line in chosen.not_run)]))
    folders = [Path(report) / run.backend if report else None for run in chosen.runs]
    codes = [_run(run, rest, folder) for run, folder in zip(chosen.runs, folders, strict=True)]
    for run, code in zip(chosen.runs, codes, strict=True):
        print(f"{run}: exit code {code}")
    print("\n".join(f"not run: {line}" for line in chosen.not_run))
    return max([*codes, *_merged(report, folders)], default=1)


def _merged(report: str, folders: Sequence[Path | None]) -> list[int]:
    """Put the runs' reports onto one page; the exit code of that, if there are any."""
    written = [str(folder) for folder in folders if folder and (folder / "report.json").is_file()]
    command = [sys.executable, "-m", "conformance", "report", *written, "--out", report]
    return [subprocess.run(command, check=False).returncode] if written else []


def _run(run: SuiteRun, given: Sequence[str], folder: Path | None) -> int:
    print(f"\n{run}", flush=True)
    if folder:
        folder.parent.mkdir(exist_ok=True)
    reported = ["--report", str(folder)] if folder else []
    command = [sys.executable, "-m", "pytest", *arguments_of(run, given), *reported]
    environment = {name: value for name, value in os.environ.items() if name not in _TF32}
    code = subprocess.run(command, env=environment | {"JAX_PLATFORMS": "cpu"}, check=False).returncode
    return code if code >= 0 else 128 - code  # ended by a signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
