"""The verdict of a matrix cell, and the order of verdicts, worst first."""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["fail", "known", "should", "pass", "unsupported", "not run"]
VERDICTS: Final[tuple[Verdict, ...]] = ("fail", "known", "should", "pass", "unsupported", "not run")


def verdict(lenient: bool, judged: int, broken: int, blamed: int, declined: int) -> Verdict:
    """The verdict of a matrix cell from its examples; `lenient`: of a SHOULD, and the implementation is not strict."""
    if blamed:
        return "fail"
    if broken:
        return "should" if lenient else "known"
    if judged:
        return "pass"
    return "unsupported" if declined else "not run"
