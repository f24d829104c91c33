"""python -m spec: read the contract from the shell. `list`, `explain NAME`, `trace "CASE LINE"`, `document`.

What cannot be answered is a sentence on stderr with the nearest names, and exit status 2; a stale SPEC.md is status 1.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from textwrap import fill

from spec.case import LAYERS, PROCEDURES, Case, CaseSyntaxError
from spec.document import PROSE, SPEC, candidates, document, example, stale
from spec.laws import LAWS
from spec.register import REGISTER, Clause
from spec.trace import traced

HELP = """\
The contract of tensor-parallel layers.

  python -m spec list                  every clause: name, level, title
  python -m spec explain NAME          one clause: its text, and the cases in which it could fail
  python -m spec trace "CASE LINE"     one case in numbers: shards, terms, output, gradients, collectives
  python -m spec document              the whole contract; --check: is SPEC.md fresh, --write: make it so

for example

  python -m spec explain row.forward.bias-once
  python -m spec trace "row P=2 batch=1 in=4 out=2 float32 bias values=small seed=7"
  python -m spec trace "gather P=2 batch=2 in=2 float32 dim=0 values=small"
"""


class Refused(Exception):
    """A request that cannot be answered: the sentence for stderr, and the exit status."""

    def __init__(self, sentence: str, status: int = 2) -> None:
        super().__init__(sentence)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    try:
        print(_answer(arguments))
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return refusal.status
    return 0


def _answer(arguments: Sequence[str]) -> str:
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        return HELP.rstrip()
    command, *rest = arguments
    if command not in COMMANDS:
        raise Refused(f"there is no command {command!r} among {', '.join(COMMANDS)}{_nearest(command, COMMANDS)}")
    return COMMANDS[command](rest)


def _nearest(word: str, names: Iterable[str], count: int = 3) -> str:
    near = get_close_matches(word, list(names), count, 0.5)
    return f", did you mean {' or '.join(near)}?" if near else ""


def _list(rest: Sequence[str]) -> str:
    if rest:
        raise Refused(f"list takes no arguments, not {' '.join(rest)!r}")
    width = max(map(len, REGISTER))
    return "\n".join(f"{entry.name:{width}}  {entry.level:6}  {entry.title}" for entry in REGISTER.values())


def _explain(rest: Sequence[str]) -> str:
    if len(rest) != 1:
        raise Refused("explain takes the name of one clause, for example row.forward.bias-once")
    if rest[0] in LAWS:
        law = LAWS[rest[0]]
        return (
            f"{law.name}  ({law.level}, of whole models)\n{law.title}\n\n{fill(law.text, 110, break_on_hyphens=False)}"
        )
    if rest[0] not in REGISTER:
        near = _nearest(rest[0], [*REGISTER, *LAWS])
        raise Refused(f"there is no clause {rest[0]!r}{near or '; python -m spec list shows all'}")
    return _explained(REGISTER[rest[0]])


def _explained(entry: Clause) -> str:
    reached = [case for case in candidates() if entry.applies(case)]
    layers = _some([layer for layer in LAYERS if any(case.layer == layer for case in reached)], LAYERS)
    sizes = {case.P for case in reached}
    procedures = [name for name in PROCEDURES if any(case.procedure == name for case in reached)]
    rows = [
        ("could fail at", f"layer {layers}; P {'> 1' if sizes == {2} else '= 1' if sizes == {1} else 'any'}"),
        ("procedures", _some(procedures, tuple(PROCEDURES))),
        ("for example", str(example(entry) or "no small case")),
        *([("origin", entry.origin)] if entry.origin else []),
    ]
    table = "\n".join(
        fill(f"{name:15}{text}", 110, subsequent_indent=" " * 15, break_on_hyphens=False) for name, text in rows
    )
    return f"{entry.name}  ({entry.level})\n{entry.title}\n\n{fill(entry.text, 110, break_on_hyphens=False)}\n\n{table}"


def _some(names: Sequence[str], every: Sequence[str]) -> str:
    return "any" if len(names) == len(every) else ", ".join(names)


def _trace(rest: Sequence[str]) -> str:
    line = " ".join(rest)
    try:
        return traced(Case.parse(line))
    except CaseSyntaxError as error:
        reason = str(error)
        quoted = re.search(r"'([^']*)'.* (?:are|none of) (.*)", reason.split("\n")[0])
        word, known = quoted.groups() if quoted else (line.partition(" ")[0], ", ".join(LAYERS))
        near = _nearest(word, known.split(", ")) if quoted or word not in LAYERS else ""
        raise Refused(reason + near.replace(", did", "\ndid")) from None
    except ValueError as error:
        raise Refused(f"no trace of this case: {error}") from None


def _document(rest: Sequence[str]) -> str:
    if list(rest) not in ([], ["--check"], ["--write"]):
        raise Refused(f"document takes --check or --write, not {' '.join(rest)!r}")
    try:
        text = document()
    except FileNotFoundError:
        raise Refused(f"the document is written in a checkout of the project: there is no {PROSE}") from None
    if rest == ["--write"]:
        SPEC.write_text(text, encoding="utf-8")
        return f"wrote {SPEC}"
    if rest == ["--check"]:
        fault = stale(SPEC.read_text(encoding="utf-8")) if SPEC.exists() else f"there is no {SPEC}; --write makes it"
        if fault:
            raise Refused(fault, status=1)
        return "SPEC.md is fresh"
    return text.rstrip("\n")


COMMANDS: dict[str, Callable[[Sequence[str]], str]] = {
    "list": _list,
    "explain": _explain,
    "trace": _trace,
    "document": _document,
}


def _run() -> int:
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # `python -m spec document | head`: nobody reads the rest, and Python must not flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(_run())
