"""Ranks: all of them answer, and none raises what it should not. A rank that fails is a finding like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.observation import Observation
from spec.register import Violation, clause
from spec.truth import Truth

# A peer that was lost makes the others' collectives fail; such an error is never the cause.
COMMUNICATION = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "socket closed",
    "nccl",
    "timed out",
)


def is_communication_error(seen: Observation) -> bool:
    """Whether a rank raised only because another had gone."""
    raised = seen.raised
    return raised is not None and any(word in raised.text.lower() for word in COMMUNICATION)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else text


def _always(case: Case) -> bool:
    return True


def _diverged(seen: Sequence[Observation]) -> bool:
    """Whether the ranks' logs are no prefixes of one sequence."""
    logs = [observation.entered for observation in seen if observation.entered]
    return any(a[i] != b[i] for a in logs for b in logs for i in range(min(len(a), len(b))))


def table_of_collectives(seen: Sequence[Observation]) -> str:
    """Who had entered what, one line per rank, ending where the ranks part."""
    lines: list[str] = []
    longest = max((len(observation.entered) for observation in seen), default=0)
    for observation in seen:
        count = len(observation.entered)
        last = f"entered {observation.entered[-1]}" if count else "entered no collective"
        absent = f", never joined #{count + 1}" if count < longest else ""
        lines.append(f"rank {observation.rank} {observation.fate}: {last}{absent}")
    return "\n".join(lines)


@clause(
    "ranks.no-exception",
    "No rank raises",
    "With valid arguments no rank raises an exception of its own.",
    _always,
    origin="Wenyueh/MinivLLM#13, NVIDIA/TransformerEngine#373, NVIDIA/Megatron-LM#548, modelscope/ms-swift#9790",
)
def no_exception(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if _diverged(seen):
        return
    own = [s for s in seen if s.raised and not is_communication_error(s)]
    others = [
        s for s in seen if s.raised and is_communication_error(s) and all(t.fate not in ("died", "hung") for t in seen)
    ]
    for observation in own or others:
        raised = observation.raised
        assert raised is not None
        yield Violation(
            observation.rank,
            "",
            f"raised {_first_line(str(raised))}",
            "no exception",
            raised.traceback or observation.stack,
        )


@clause(
    "ranks.alive",
    "No rank dies",
    "No rank's process ends while it computes.",
    _always,
    origin="turboderp-org/exllamav3#302",
)
def alive(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        if observation.fate == "died" and not _diverged(seen):
            yield Violation(observation.rank, "", f"died: {observation.exit}", "a rank that returns", observation.stack)


@clause(
    "ranks.same-collectives",
    "Ranks enter the same collectives",
    "All ranks of a group enter the same sequence of collectives, with the same kind, size and dtype.",
    _always,
    origin="pytorch/pytorch#115310, sgl-project/sglang#33289, NVIDIA/nccl#1417",
)
def same_collectives(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if any(s.fate != "returned" or s.raised for s in seen):
        blamed = any(s.fate == "died" or (s.raised and not is_communication_error(s)) for s in seen)
        if _diverged(seen) or (not blamed and len({len(s.entered) for s in seen}) > 1):
            yield Violation(
                None, "", "the ranks' collectives part", "one sequence on all ranks", table_of_collectives(seen)
            )
        return
    for name in seen[0].steps:
        logs = {s.rank: s.steps[name].collectives for s in seen if name in s.steps}
        plain = {rank: tuple(map(str, log)) for rank, log in logs.items() if log is not None}
        first = next(iter(plain.values()), ())
        for rank, log in plain.items():
            if log != first:
                yield Violation(
                    rank,
                    name,
                    "its collectives are not those of the other ranks",
                    "; ".join(first) or "none",
                    "; ".join(log) or "none",
                )


@clause(
    "ranks.finish",
    "Every rank finishes",
    "Every operation ends on every rank: none waits for ever.",
    _always,
    origin="huggingface/transformers#48569, sgl-project/sglang#33289",
)
def finish(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    for observation in seen:
        if observation.fate == "hung":
            where = f"after {observation.entered[-1]}" if observation.entered else "before any collective"
            yield Violation(observation.rank, "", f"did not finish, {where}", "a rank that returns")
