"""`python -m conformance.models`: replay one item, or the shares of published models that torch_tp puts into slices.

    python -m conformance.models replay llama-P2-model
    python -m conformance.models replay --impl mine.py:Mine gated-P4-sgd
    python -m conformance.models shares

Exit code 0: the item breaks no law; 1: it breaks one; 2: there is no such item, or it cannot be run here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.models.items import ModelItem, model_items
from conformance.models.judge import ModelJudge, impossible
from conformance.observers import Options
from conformance.ranks import StartFailed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m conformance.models", description="Replay an item; print shares.")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    replay = commands.add_parser("replay", help="put one model through one procedure again")
    replay.add_argument("item", help="as a failure prints it, such as llama-P2-model")
    replay.add_argument("--impl", default="torch_tp", help="a name, module:Class or file.py:Class")
    commands.add_parser("items", help="list the items")
    commands.add_parser("shares", help="how much of published models lies in slices")
    chosen = parser.parse_args(arguments)
    if chosen.command == "items":
        print(*model_items(), sep="\n")
        return 0
    if chosen.command == "shares":
        from conformance.models.inside.shares import print_shares

        return print_shares()
    return _replay(chosen.item, Options(chosen.impl, sys_path=(str(Path.cwd()),)))


def _replay(text: str, options: Options) -> int:
    try:
        item = ModelItem.parse(text)
        reason = impossible(item, options)
        if reason:
            raise ValueError(reason)
        with ModelJudge(options) as judge:
            verdict = judge.examine(item)
    except (ValueError, StartFailed) as error:
        print(error, file=sys.stderr)
        return 2
    print(verdict.text or f"{item} of {options.impl} keeps {', '.join(verdict.judged)}")
    return 1 if verdict.text else 0


if __name__ == "__main__":
    sys.exit(main())
