"""`python -m conformance`: replay one case, put reports together, or run the suite on ranks that torchrun started.

    python -m conformance replay "row P=2 batch=3 in=4 out=2 float32 bias seed=7"
    python -m conformance replay --impl mine.py:Mine "row P=2 ..."
    python -m conformance report one/ two/report.json --out merged/
    python -m conformance report out/ --check conformance/results
    torchrun --nproc-per-node 2 -m conformance attached --backend nccl --device cuda [pytest options]

Exit code 0: the case breaks no clause, the results are those that are committed; 1: it breaks one, some are not; 2: no
such case or implementation, or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.adapters.protocol import NoSuchAdapter
from conformance.coverage.worth import bound_sentence
from conformance.diagnosis import diagnose
from conformance.observers import NotDeclared, Options, rank_setup
from conformance.ranks import StartFailed
from conformance.reporting.command import add_arguments, report
from conformance.reporting.failure.text import adapter_sentence, failure
from conformance.suite import Suite
from spec import Case, CaseSyntaxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command == "attached":
        return _attached(chosen, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.command == "report":
        return report(chosen)
    try:
        case = Case.parse(chosen.case)
        # A diagnosis may want other worlds; NCCL has no more ranks than there are GPUs.
        worlds = (case.world, *({1, 2, 4} - {case.world})) if chosen.backend == "gloo" else (case.world,)
        return _replay(Options(chosen.impl, worlds, chosen.backend, chosen.device, sys_path=(str(Path.cwd()),)), case)
    except (CaseSyntaxError, NoSuchAdapter) as error:
        print(error, file=sys.stderr)
    except (StartFailed, NotDeclared) as error:
        print(adapter_sentence(error), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conformance", description="Replay one case; put reports together.")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    replay = commands.add_parser("replay", help="run one case and say which clauses it breaks")
    replay.add_argument("case", help="a case line, as a failure report prints it")
    add_arguments(commands.add_parser("report", help="put reports together, or compare them with committed results"))
    attached = commands.add_parser("attached", help="under torchrun: the suite on these ranks, rank 0 reports")
    for command in (replay, attached):
        command.add_argument("--impl", default="torch_tp", help="a name, module:Class or file.py:Class")
        command.add_argument("--backend", default="gloo", choices=("gloo", "nccl"))
        command.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def _attached(chosen: argparse.Namespace, rest: list[str]) -> int:
    """Rank 0 runs pytest and is a rank too; the others serve until it has finished."""
    world = os.environ.get("WORLD_SIZE", "")
    if world not in ("1", "2", "4"):
        print(f"WORLD_SIZE={world!r}: start 1, 2 or 4 ranks with torchrun --nproc-per-node", file=sys.stderr)
        return 2
    options = Options(
        chosen.impl, (int(world),), chosen.backend, chosen.device, sys_path=(str(Path.cwd()),), attached=True
    )
    if os.environ.get("RANK", "0") != "0":
        from conformance.ranks.attached import serve_attached

        serve_attached(rank_setup(options, int(world)))
        return 0
    import pytest

    ours = ["--impl", options.impl, "--backend", options.backend, "--device", options.device, "--world-sizes", world]
    return pytest.main(["-p", "conformance.plugin", "--pyargs", "conformance", "--attached", *ours, *rest])


def _replay(options: Options, case: Case) -> int:
    suite = Suite(options)
    try:
        verdict = suite.examine(case)
        judged = len(suite.tally.judged)
        name = suite.declaration.name
        first = next(iter(verdict.findings), None)
        diagnosis = diagnose(verdict, first, suite.look, suite.options.world_sizes) if first else None
    finally:
        suite.close()
    if verdict.findings:
        print(failure(options, verdict, verdict.findings, diagnosis).strip("\n"))
        return 1
    if verdict.intermittent:
        print(f"{name}: {case}\nintermittent, a failure that did not come back:\n{verdict.intermittent}")
        return 1
    unsupported = f"unsupported: {verdict.declined}"
    passed = f"breaks none of the {judged} clauses that apply\n{bound_sentence(case)}".strip()
    print(f"{name}: {case}\n{unsupported if verdict.declined else passed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
