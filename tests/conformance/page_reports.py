"""Reports to look at: simulated implementations with one mistake each, examined on a handful of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from faulty import BiasBeforeReduction

from conformance.adapters.protocol import Declaration
from conformance.adapters.simulated import Exchange, Simulated
from conformance.diagnosis import diagnose
from conformance.items import items
from conformance.observers import InProcess, Options
from conformance.reporting.failure.raised import recorded
from conformance.reporting.record import ItemsRun, KnownReason, Report, Run, new_report
from conformance.reporting.record.tallied import run_of
from conformance.suite import Suite
from spec import Array, Case, Observation, Step
from spec.numerics import encode
from spec.placements import Floats

CASES = (
    "column P={P} batch=2 in=3 out={PP} float32 bias values=small seed=1",
    "column P={P} batch=2 in=3 out={PP} float32 bias gather_output values=small seed=2",
    "column P={P} batch=2 in=3 out={PP} float32 procedure=twice values=small seed=3",
    "column P={P} batch=40 in=48 out={PP} float32 bias seed=4",
    "row P={P} batch=2 in={PP} out=3 float32 bias values=small seed=1",
    "row P={P} batch=3 in={PP} out=2 float32 bias input_is_parallel=False values=small seed=2",
    "row P={P} batch=2 in={PP} out=3 float32 bias skip_bias_add reduce_output=False values=small seed=3",
    "row P={P} batch=2 in={PP} out=3 float32 bias procedure=accumulate values=small seed=4",
    "row P={P} batch=2 in={PP} out=3 float32 procedure=no-grad values=small seed=5",
    "copy P={P} batch=2 in=3 float32 seed=1",
    "reduce P={P} batch=2 in=3 float32 values=small seed=1",
    "gather P={P} batch=2 in={PP} float32 values=small seed=3",
    "scatter P={P} batch=2 in={PP} float32 values=small seed=1",
    "pair P={P} batch=2 in=3 hidden={PP} out=3 float32 bias values=small seed=1",
    "row P={P} in={PP} out=3 float32 bias procedure=init seed=0",
)
Adapters = Mapping[str, Simulated]
Tensors = Sequence[Floats]


class NotReduced(Simulated):
    """The column layer's input gradient is every rank's own term; nothing is communicated."""

    def column_backward(self, case: Case, x: Tensors, held: Any, g: Tensors, exchange: Exchange) -> Any:
        width = case.out_features // case.P
        own = [up[..., r * width : (r + 1) * width] if case.gather_output else up for r, up in enumerate(g)]
        terms = [self.product(case, up, h["weight"]) for up, h in zip(own, held, strict=True)]
        return [{"x": t, **self.parameter_gradients(case, a, up)} for t, a, up in zip(terms, x, own, strict=True)]


class Reversed(Simulated):
    """gather joins the ranks' slices from the last to the first."""

    def gather_forward(self, case: Case, x: Tensors, held: object, exchange: Exchange) -> list[Floats]:
        return exchange.all_gather(list(reversed(x)), case.dim)


class NoBiasGradient(Simulated):
    """Only rank 0 of a row layer has a gradient of the bias."""

    def row_backward(self, *args: Any) -> Any:
        found = super().row_backward(*args)
        return [{**own, "bias": own["bias"] if r == 0 else None} for r, own in enumerate(found)]


class Superfluous(Simulated):
    """The row layer reduces the upstream gradient, and drops the result."""

    def declare(self) -> Declaration:
        return replace(super().declare(), strict=self.strict)

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    def row_backward(self, case: Case, x: Any, held: Any, g: Any, exchange: Exchange) -> Any:
        exchange.all_reduce(g)
        return super().row_backward(case, x, held, g, exchange)


class Wide(Simulated):
    """Outputs are float64 whatever the case says."""

    def _step(self, *args: Any) -> Step:
        step = super()._step(*args)
        assert step.output is not None
        wide = Array(encode(step.output.numbers, "float64").tobytes(), "float64", step.output.shape)
        return replace(step, output=wide)


class LosesRank1(InProcess):
    """Rank 1 dies in the first collective of every reduction, and the others wait for it."""

    def observe(self, case: Case, deadline: float) -> Any:
        groups = super().observe(case, deadline)
        if case.layer != "reduce" or case.P == 1:
            return groups
        return tuple(tuple(_lost(rank) for rank in range(case.P)) for _ in groups)


def _lost(rank: int) -> Observation:
    if rank == 1:
        return Observation(1, fate="died", exit="killed by signal 9 (SIGKILL)")
    entered = ("#1 all-reduce 24 B float32", "#1 waits")
    stack = 'Current thread 0x01 (most recent call first):\n  File "reduce.py", line 7 in all_reduce\n'
    return Observation(rank, fate="victim", entered=entered, stack=stack)


def examined(name: str, observer: InProcess, worlds: Sequence[int] = (1, 2, 4), known: Sequence[str] = ()) -> Run:
    """The run of an implementation on all cases; failures of the clauses in `known` count as known deviations."""
    suite = Suite(Options(impl="numpy", world_sizes=tuple(worlds), records=True))
    suite.observer = observer
    blamed = suite.blamed
    suite.blamed = lambda verdict: tuple(f for f in blamed(verdict) if f.clause.name not in known)  # type: ignore[method-assign]
    seen: set[tuple[str, int]] = set()
    for P in worlds:
        for template in CASES:
            verdict = suite.examine(Case.parse(template.format(P=P, PP=2 * P)))
            findings = [f for f in verdict.findings if f in suite.blamed(verdict) or f.clause.name in known][:1]
            for finding in findings:
                if (finding.clause.name, P) not in seen:
                    seen.add((finding.clause.name, P))
                    reason = (
                        KnownReason("on purpose", "https://example.org/1") if finding.clause.name in known else None
                    )
                    others = [f for f in verdict.findings if f is not finding]
                    told = diagnose(verdict, finding, suite.look, tuple(worlds))
                    failure = recorded(suite, verdict, [finding, *others], told, reason)
                    suite.failures.append(replace(failure, item=f"run-{verdict.case.layer}-P{P}-float32"))
    names = tuple(str(item) for item in items(tuple(worlds)))
    done = ItemsRun(len(names), len(names), names, (), ())
    declared = replace(observer.declare(), name=name)
    return run_of(declared, suite.options, "quick", "1427644570", done, suite.tally, suite.failures)


@cache
def run_named(name: str) -> Run:
    """One of the runs below."""
    observers = {
        "sound": (InProcess(Simulated()), (1, 2, 4), ()),
        "bias-before-sum": (InProcess(BiasBeforeReduction()), (1, 2, 4), ()),
        "no-all-reduce": (InProcess(NotReduced()), (1, 2, 4), ()),
        "reversed-gather": (InProcess(Reversed()), (1, 2, 4), ()),
        "bias-on-rank-0": (InProcess(NoBiasGradient()), (1, 2, 4), ("row.backward.bias-grad",)),
        "chatty": (InProcess(Superfluous()), (1, 2, 4), ()),
        "chatty-but-lenient": (InProcess(Superfluous(strict=False)), (1, 2, 4), ()),
        "wide": (InProcess(Wide()), (1, 2), ()),
        "loses-a-rank": (LosesRank1(Simulated()), (1, 2, 4), ()),
    }
    observer, worlds, known = observers[name]
    return examined(name, observer, worlds, known)


NAMES = (
    "sound",
    "bias-before-sum",
    "no-all-reduce",
    "reversed-gather",
    "bias-on-rank-0",
    "chatty",
    "chatty-but-lenient",
    "wide",
    "loses-a-rank",
)


def report_on(*names: str) -> Report:
    """A report of these runs; of all without any."""
    return new_report([run_named(name) for name in names or NAMES])
