"""Refusals: a bad argument is refused on every rank, before any collective, and the group stays usable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.faults import FAULTS
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth


def _refuses(case: Case) -> bool:
    return case.procedure == "refuse"


def _refused(seen: Sequence[Observation]) -> bool:
    return all(s.steps["refused"].raised for s in seen)


@clause(
    "refuse.raises",
    "A bad argument raises on every rank",
    "A bad argument that all ranks share raises some exception on each of them.",
    _refuses,
    origin="pytorch/torchtitan#1306, sgl-project/sglang#31799, pytorch/pytorch#150336, vllm-project/vllm#440",
)
def raises(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        if observation.steps["refused"].raised is None:
            yield Violation(
                observation.rank, "refused", f"accepted: {FAULTS[case.fault].title}", "an exception", "none"
            )


@clause(
    "refuse.no-collective",
    "A refusal comes before any collective",
    "No rank enters a collective before it refuses.",
    _refuses,
)
def no_collective(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        entered = observation.steps["refused"].collectives
        if entered:
            yield Violation(observation.rank, "refused", "entered a collective", "none", "; ".join(map(str, entered)))


@clause(
    "refuse.group-usable",
    "The group is usable after a refusal",
    "After a refusal the next collective on the same group gives the right result.",
    _refuses,
)
def group_usable(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    total = case.P * (case.P + 1) / 2
    for observation in seen:
        after = observation.steps.get("after")
        numbers = after.output.numbers.tolist() if after and after.output else None
        if numbers != [total]:
            yield Violation(
                observation.rank, "after", "the all-reduce after the refusal is wrong", str([total]), str(numbers)
            )


@clause(
    "refuse.same-everywhere",
    "Every rank raises the same",
    "A bad argument that all ranks share raises the same type with the same text on each of them.",
    _refuses,
    level="SHOULD",
)
def same_everywhere(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if not _refused(seen):
        return
    first = seen[0].steps["refused"].raised
    for observation in seen[1:]:
        raised = observation.steps["refused"].raised
        if str(raised) != str(first):
            yield Violation(observation.rank, "refused", "raised something else than rank 0", str(first), str(raised))


@clause(
    "refuse.type",
    "A refusal has a type that can be caught",
    "A refusal is a built-in type or a subclass: ValueError for sizes and flags, TypeError for dtypes.",
    _refuses,
    level="SHOULD",
)
def built_in_type(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    allowed = FAULTS[case.fault].types
    for observation in seen:
        raised = observation.steps["refused"].raised
        if raised and not set(allowed) & set(raised.types):
            yield Violation(observation.rank, "refused", "raised another type", " or ".join(allowed), str(raised))


@clause(
    "refuse.text",
    "A refusal says what was wrong",
    "The text of a refusal names the parameter and has the numbers that do not fit.",
    _refuses,
    level="SHOULD",
)
def helpful_text(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    words = FAULTS[case.fault].words(case)
    for observation in seen:
        raised = observation.steps["refused"].raised
        missing = [word for word in words if raised and word not in raised.text]
        if missing:
            yield Violation(
                observation.rank, "refused", f"the text lacks {', '.join(missing)}", ", ".join(words), str(raised)
            )
