"""`python -m conformance`: replay one case.

    python -m conformance replay "row P=2 batch=3 in=4 out=2 float32 bias seed=7"
    python -m conformance replay --impl mine.py:Mine "row P=2 ..."

Exit code 0: the case breaks no clause; 1: it breaks one; 2: no such case or implementation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.adapters.protocol import NoSuchAdapter
from conformance.report import adapter_sentence, failure
from conformance.suite import Options, StartFailed, Suite
from spec import Case, CaseSyntaxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        case = Case.parse(chosen.case)
        return _replay(
            Options(chosen.impl, (case.world,), chosen.backend, chosen.device, sys_path=(str(Path.cwd()),)), case
        )
    except (CaseSyntaxError, NoSuchAdapter) as error:
        print(error, file=sys.stderr)
    except StartFailed as error:
        print(adapter_sentence(error), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conformance", description="Replay one case of the suite.")
    commands = parser.add_subparsers(required=True, metavar="command")
    replay = commands.add_parser("replay", help="run one case and say which clauses it breaks")
    replay.add_argument("case", help="a case line, as a failure report prints it")
    replay.add_argument("--impl", default="torch_tp", help="as for the suite: a name, module:Class or file.py:Class")
    replay.add_argument("--backend", default="gloo", choices=("gloo", "nccl"))
    replay.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def _replay(options: Options, case: Case) -> int:
    suite = Suite(options)
    try:
        verdict = suite.examine(case)
        judged = len(suite.tally.judged)
        name = suite.declaration.name
    finally:
        suite.close()
    if verdict.findings:
        print(failure(options, verdict, verdict.findings).strip("\n"))
        return 1
    if verdict.intermittent:
        print(f"{name}: {case}\nintermittent, a failure that did not come back:\n{verdict.intermittent}")
        return 1
    unsupported = f"unsupported: {verdict.declined}"
    print(f"{name}: {case}\n{unsupported if verdict.declined else f'breaks none of the {judged} clauses that apply'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
