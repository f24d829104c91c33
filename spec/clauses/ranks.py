"""Ranks: all of them answer, and none raises what it should not. A rank that fails is a finding like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.case import Case
from spec.clauses.progress import Progress, diverged, parting, progress, table_of_collectives
from spec.observation import Collective, Observation
from spec.register import Violation, clause
from spec.truth import Truth

__all__ = ["is_communication_error", "table_of_collectives"]

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


@clause(
    "ranks.no-exception",
    "No rank raises",
    "With valid arguments no rank raises an exception of its own.",
    _always,
    origin="Wenyueh/MinivLLM#13, NVIDIA/TransformerEngine#373, NVIDIA/Megatron-LM#548, modelscope/ms-swift#9790",
)
def no_exception(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if diverged(list(map(progress, seen))):
        return
    own = [s for s in seen if s.raised and not is_communication_error(s)]
    others = [
        s for s in seen if s.raised and is_communication_error(s) and all(t.fate not in ("died", "hung") for t in seen)
    ]
    for observation in own or others:
        advice = _TRANSPORT if not own else _ALIKE if len(own) == len(seen) else _ALONE
        what = f"raised {_first_line(str(observation.raised))}"
        yield Violation(observation.rank, "", what, "no exception: the case's arguments are valid", advice)


_ALIKE = "one on every rank; if it refuses what it does not support, let its adapter decline such cases"
_ALONE = "one that not every rank raises; the others wait for this rank, or go on without it"
_TRANSPORT = "the transport failed, and no rank is known to have failed first; see its settings and what it printed"


@clause(
    "ranks.alive",
    "No rank dies",
    "No rank's process ends while it computes.",
    _always,
    origin="turboderp-org/exllamav3#302",
)
def alive(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if diverged(list(map(progress, seen))):
        return
    for observation in seen:
        if observation.fate == "died":
            end = _first_line(observation.exit)
            advice = next((text for words, text in _ENDS if any(word in end for word in words)), "")
            yield Violation(observation.rank, "", f"died: {end}", "a rank that returns", advice)


_ENDS = (
    (("SIGKILL",), "killed from outside: by the kernel if memory ran out, which its log says (dmesg), or by somebody"),
    (("SIGABRT",), "native code gave up, as it does over a C++ exception; what the rank printed last may name it"),
    (("SIG",), "native code crashed; where the rank stood and what it printed last may say which"),
    (("exit code",), "something ended the process by itself, such as os._exit or native code's exit"),
)


@clause(
    "ranks.same-collectives",
    "Ranks enter the same collectives",
    """All ranks of a group enter the same sequence of collectives, with the same kind, size and dtype. Of a scatter
    only the root has a payload, so size and dtype are not compared; messages between two ranks are no collectives.""",
    _always,
    origin="pytorch/pytorch#115310, sgl-project/sglang#33289, NVIDIA/nccl#1417",
)
def same_collectives(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    if any(s.fate != "returned" or s.raised for s in seen):
        ranks = [progress(s) for s in seen]
        blamed = any(s.fate == "died" or (s.raised and not is_communication_error(s)) for s in seen)
        number = parting(ranks)
        # Where nobody hangs or raises, ranks were stopped at different points because of a rank of another group.
        stopped = all(s.fate in ("returned", "victim") for s in seen)
        if number and (diverged(ranks) or not (blamed or stopped)):
            told = "\n".join(f"rank {rank.rank} {rank.did_at(number)}" for rank in ranks)
            yield Violation(None, "", f"the ranks part at collective #{number}", "one sequence on all ranks", told)
        return
    for name in seen[0].steps:
        logs = {s.rank: s.steps[name].collectives for s in seen if name in s.steps}
        plain = {rank: _sequence(log) for rank, log in logs.items() if log is not None}
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


def _sequence(log: Sequence[Collective]) -> tuple[str, ...]:
    """What all ranks of a group must have in common."""
    return tuple(entry.kind if entry.kind == "scatter" else str(entry) for entry in log if entry.kind != "p2p")


@clause(
    "ranks.finish",
    "Every rank finishes",
    "Every operation ends on every rank: none waits for ever.",
    _always,
    origin="huggingface/transformers#48569, sgl-project/sglang#33289",
)
def finish(case: Case, truth: Truth, seen: Sequence[Observation]) -> Iterator[Violation]:
    ranks = [progress(s) for s in seen]
    for rank in ranks:
        if rank.fate == "hung":
            what = f"did not finish: it {rank.came_to()}"
            yield Violation(rank.rank, "", what, "a rank that returns", _waits_for(rank, ranks))


def _waits_for(rank: Progress, ranks: Sequence[Progress]) -> str:
    """What keeps a rank that hangs, and so where to look next."""
    number = rank.stands_in
    if not number:
        return "not known to wait for a collective; its stack says where it is"
    elsewhere = [other for other in ranks if other.entered.get(number) != rank.entered[number]]
    if not elsewhere:
        return f"every rank entered #{number} alike; look at the group it runs in, and at the transport"
    return "it waits for " + ", and ".join(f"rank {other.rank}, which {other.did_at(number)}" for other in elsewhere)
