"""Which collective moves which dtype here: asked of real ranks, over each backend, before a suite depends on it.

    python -m conformance.probe --device cpu

`probe` is the worker's half. `answer_probes` is the handler of the ranks and imports torch alone.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conformance.ranks import Context, RankPool, RankSetup, Reply, StartFailed

COLLECTIVES: Final = ("all-reduce", "all-gather", "reduce-scatter", "broadcast")
DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
OK: Final = "ok"
# The first collective of a backend may start libraries and make connections.
DEADLINE: Final = 60.0


@dataclass(frozen=True, order=True)
class Question:
    """One collective of one dtype, over one backend, in one world size."""

    backend: str
    world: int
    collective: str
    dtype: str


# What became of each question: "ok", or the first line of what went wrong.
Answers = Mapping[Question, str]


def probe(places: Iterable[tuple[str, int]], device: str) -> dict[Question, str]:
    """Ask everything of every (backend, world size)."""
    answers: dict[Question, str] = {}
    with RankPool() as pool:
        for backend, world in places:
            setup = RankSetup(world, "conformance.probe:answer_probes", {}, backend, device)
            questions = [Question(backend, world, c, dtype) for c in COLLECTIVES for dtype in DTYPES]
            try:
                answers |= {question: _ask(pool, setup, question) for question in questions}
            except StartFailed as error:  # so it would for each of them
                answers |= dict.fromkeys(questions, summary(error.replies))
    return answers


def _ask(pool: RankPool, setup: RankSetup, question: Question) -> str:
    return summary(pool.call(setup, f"{question.collective} {question.dtype}".encode(), DEADLINE))


def summary(replies: Sequence[Reply]) -> str:
    """ "ok", or one line of the first rank that says otherwise; victims of another one's fault come last."""
    said = [_said(reply) for reply in sorted(replies, key=lambda reply: reply.fate == "victim")]
    return next((text for text in said if text != OK), OK)


def _said(reply: Reply) -> str:
    if reply.fate == "returned":
        return (reply.payload or b"").decode() or OK
    error = _error_line(reply.stack) if reply.fate == "raised" else ""
    return f"rank {reply.rank} {reply.fate} {reply.exit or error}".rstrip()


def _error_line(traceback: str) -> str:
    """The first line of the exception's own text, which stands below the last frame."""
    below = traceback.rpartition("  File ")[2].splitlines()[1:]
    return next((line for line in below if line and not line.startswith(" ")), "")


def table(answers: Answers) -> list[str]:
    """One line per backend, world size and collective: a column per dtype, then in full what went wrong."""
    lines = [f"{'backend':<8} {'ranks':>5}  {'collective':<14}" + "".join(f"{dtype:>10}" for dtype in DTYPES)]
    for backend, world, collective in dict.fromkeys((q.backend, q.world, q.collective) for q in answers):
        row = [answers[Question(backend, world, collective, dtype)] for dtype in DTYPES]
        lines.append(
            f"{backend:<8} {world:>5}  {collective:<14}" + "".join(f"{OK if text == OK else 'no':>10}" for text in row)
        )
        lines += [f"{'':<16}{dtype}: {text}" for dtype, text in zip(DTYPES, row, strict=True) if text != OK]
    return lines


# In a rank


def answer_probes(context: Context) -> Callable[[bytes], bytes]:
    """The factory that ranks call: `COLLECTIVE DTYPE` is answered with "ok", or the first line of what went wrong."""

    def handle(command: bytes) -> bytes:
        collective, dtype = command.decode().split()
        try:
            return _RUN[collective](context, dtype).encode()
        except Exception as error:
            text = str(error).strip() or "no message"
            return f"{type(error).__name__}: {text.splitlines()[0]}".encode()

    return handle


def _torch() -> Any:
    """torch, by name: outside the ranks, where this module is imported too, nothing of the suite imports it."""
    return importlib.import_module("torch")


def _mine(context: Context, dtype: str) -> Any:
    """Small whole numbers, other ones on each rank: [r + 1, r + 1]."""
    torch = _torch()
    return torch.full((2,), context.rank + 1.0, dtype=getattr(torch, dtype), device=context.device)


def _compared(got: Any, expected: Sequence[float]) -> str:
    values = got.double().tolist()
    return OK if values == list(expected) else f"wrong: expected {list(expected)}, got {values}"


def _all_reduce(context: Context, dtype: str) -> str:
    tensor = _mine(context, dtype)
    _torch().distributed.all_reduce(tensor)
    return _compared(tensor, [_total(context)] * 2)


def _all_gather(context: Context, dtype: str) -> str:
    mine = _mine(context, dtype)
    whole = mine.new_empty(2 * context.world)
    _of_one_tensor("all_gather_single", "all_gather_into_tensor")(whole, mine)
    return _compared(whole, [rank + 1.0 for rank in range(context.world) for _ in range(2)])


def _reduce_scatter(context: Context, dtype: str) -> str:
    mine = _mine(context, dtype).repeat(context.world)
    part = mine.new_empty(2)
    _of_one_tensor("reduce_scatter_single", "reduce_scatter_tensor")(part, mine)
    return _compared(part, [_total(context)] * 2)


def _broadcast(context: Context, dtype: str) -> str:
    tensor = _mine(context, dtype)
    _torch().distributed.broadcast(tensor, src=context.world - 1)
    return _compared(tensor, [float(context.world)] * 2)


def _of_one_tensor(name: str, older: str) -> Any:
    """Newer releases of torch warn of the older name."""
    dist = _torch().distributed
    return getattr(dist, name, None) or getattr(dist, older)


def _total(context: Context) -> float:
    return context.world * (context.world + 1) / 2


_RUN: Final[dict[str, Callable[[Context, str], str]]] = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "broadcast": _broadcast,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.probe", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="gloo", choices=("gloo", "nccl"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--world-sizes", default="1,2", help="separated by commas (default 1,2)")
    chosen = parser.parse_args(arguments)
    worlds = [int(word) for word in chosen.world_sizes.split(",")]
    answers = probe([(chosen.backend, world) for world in worlds], chosen.device)
    print("\n".join(table(answers)))
    return 0 if all(text == OK for text in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
