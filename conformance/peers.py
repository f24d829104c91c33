"""The suite against the peers: `python -m conformance.peers [pytest's arguments]`, which is what `tox -e peers` runs.

Each implementation is a run of its own, one after another, so that one that is missing or fails takes no other with it.
With `--report DIR` every run writes its report into a folder there, and all are merged into DIR itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from conformance.adapters.find import OURS

PEERS: Final = tuple(name for name in OURS if name not in ("torch_tp", "numpy"))
_OUTCOMES: Final = {0: "conforms, but for what is known", 1: "some tests failed", 4: "was not run"}


def commands(names: Sequence[str], report: str, given: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of each implementation's run."""
    suite = str(Path(__file__).parent)
    return {
        name: [suite, "--impl", name, *(["--report", str(Path(report) / name)] if report else []), *given]
        for name in names
    }


def main(given: Sequence[str]) -> int:
    """Run them all; the worst exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance.peers",
        allow_abbrev=False,
        description="The suite against every peer, each in a run of its own. What is not named here goes to pytest.",
    )
    parser.add_argument("--impl", action="append", choices=PEERS, help="one of them; repeatable (default: all)")
    parser.add_argument("--report", default="", metavar="DIR", help="write DIR/<implementation>/ and, merged, DIR/")
    chosen, rest = parser.parse_known_args(given)
    names = tuple(dict.fromkeys(chosen.impl or PEERS))
    if chosen.report:
        Path(chosen.report).mkdir(parents=True, exist_ok=True)
        for name in names:
            (Path(chosen.report) / name / "report.json").unlink(missing_ok=True)  # of an earlier run
    codes = {
        name: _run(name, ["-m", "pytest", *arguments])
        for name, arguments in commands(names, chosen.report, rest).items()
    }
    print()
    for name, code in codes.items():
        print(f"{name}: {_OUTCOMES.get(code, 'the run did not finish')} (exit code {code})")
    merged = _merge(chosen.report, names) if chosen.report else 0
    return max(*codes.values(), merged)


def _merge(report: str, names: Sequence[str]) -> int:
    written = [str(path) for name in names if (path := Path(report) / name / "report.json").is_file()]
    if not written:
        print("no run wrote a report")
        return 1
    return _run("report", ["-m", "conformance", "report", *written, "--out", report])


def _run(what: str, arguments: Sequence[str]) -> int:
    print(f"\n{what}", flush=True)
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    return code if code >= 0 else 128 - code  # ended by a signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
