"""How the suite takes a mutant: after how many examples it fails, on what smallest case, with what diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from catalogue import Mutant
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conformance import suite as suite_module
from conformance.diagnosis import Diagnosis, diagnose
from conformance.items import items
from conformance.observers import Options
from conformance.strategies import cases
from conformance.suite import Suite, Verdict
from spec import Case, ContractViolation, Finding

ITEMS = {str(item): item for item in items()}
EXAMPLES = 25
SEEDS, EXAMPLES_OF_CORRECT = 1, 300  # where nobody asks for more
_SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),  # ranks that hang are slow on purpose
)


@dataclass
class Watch:
    """The suite's own test of an item, with an eye on which example was the first to fail."""

    suite: Suite
    item: str
    count: int = 0
    first: int = 0
    failed: dict[str, tuple[Verdict, Finding]] = field(default_factory=dict[str, "tuple[Verdict, Finding]"])

    def examine(self, data: st.DataObject) -> None:
        verdict = self.suite.examine(data.draw(cases(ITEMS[self.item]), label="case"))
        blamed = self.suite.blamed(verdict)
        self.count += 1
        if blamed:
            self.first = self.first or self.count
            self.failed[blamed[0].clause.name] = (verdict, blamed[0])
            raise blamed[0].clause.error(str(verdict.case))

    def run(self, number: int, shrink: bool, examples: int = EXAMPLES) -> set[str]:
        """The names of the clauses that Hypothesis reports; `failed` then has the smallest case of each."""
        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

        @seed(number)
        @settings(_SETTINGS, phases=phases, max_examples=examples, report_multiple_bugs=shrink)
        @given(data=st.data())
        def test(data: st.DataObject) -> None:
            self.examine(data)

        self.suite.begin_item()
        reported: set[str] = set()
        try:
            test()
        except* ContractViolation as group:
            reported = {error.clause.name for error in group.exceptions if isinstance(error, ContractViolation)}
        return reported


@dataclass(frozen=True)
class Result:
    """What the suite made of a mutant.

    Attributes:
        examples: by seed, until the first failure; 0 where there was none.
        raised: clause -> the smallest case that was reported.
        diagnoses: clause -> diagnosis.
    """

    examples: tuple[int, ...]
    raised: dict[str, Case]
    diagnoses: dict[str, Diagnosis]

    @property
    def worst(self) -> int:
        """The examples that the unluckiest seed needed; 0 where any seed found nothing."""
        return max(self.examples) if all(self.examples) else 0


@contextmanager
def opened(impl: str, deadline: float = suite_module.DEADLINE) -> Iterator[Suite]:
    """A suite in front of an implementation."""
    usual, suite_module.DEADLINE = suite_module.DEADLINE, deadline
    suite = Suite(Options(impl))
    try:
        yield suite
    finally:
        suite.close()
        suite_module.DEADLINE = usual


def measure(mutant: Mutant, seeds: int) -> Result:
    """Run the items that apply in turn, from every seed, until one fails; shrink and diagnose from the first seed."""
    raised: dict[str, Case] = {}
    diagnoses: dict[str, Diagnosis] = {}
    with opened(mutant.impl, _deadline(mutant)) as suite:
        examples = tuple(_search(suite, mutant, number) for number in range(seeds))
        for position, item in enumerate(mutant.items):
            watch = Watch(suite, item)
            for name in watch.run(1000 * position, shrink=True):
                verdict, finding = watch.failed[name]
                raised[name] = verdict.case
                diagnoses[name] = diagnose(verdict, finding, suite.look, suite.options.world_sizes)
            if raised:
                break
    return Result(examples, raised, diagnoses)


def _search(suite: Suite, mutant: Mutant, number: int) -> int:
    """The examples until the first failure from one seed, over the items in turn; 0 if there is none."""
    before = 0
    for position, item in enumerate(mutant.items):
        watch = Watch(suite, item)
        watch.run(number + 1000 * position, shrink=False)  # of one seed, like items would draw the same
        if watch.first:
            return before + watch.first
        before += watch.count
    return 0


def _deadline(mutant: Mutant) -> float:
    """Less long than usual for ranks that hang on purpose."""
    return 0.5 if mutant.clauses[0].startswith("ranks.") else suite_module.DEADLINE


def passes_naive_test(mutant: Mutant) -> bool:
    """The test that most projects have: P = 2, square, no bias, contiguous, float32, forward, rank 0, 1e-3."""
    layer = ITEMS[mutant.items[0]].layer
    sizes = {"column": "in=8 out=8", "row": "in=8 out=8", "pair": "in=8 hidden=8 out=8"}.get(layer, "in=8")
    values = "exact" if layer == "pair" else "gaussian"
    case = Case.parse(f"{layer} P=2 batch=4 {sizes} float32 values={values} procedure=no-grad seed=0")
    from spec.clauses.compare import true_output
    from spec.reference import truth

    with opened(mutant.impl, _deadline(mutant)) as suite:
        verdict = suite.look(case)
    if verdict is None:
        return True
    seen = verdict.groups[0][0]
    if seen.fate != "returned" or seen.raised or seen.steps["first"].output is None:
        return False
    got, expected = seen.steps["first"].output.numbers, true_output(case, truth(case).runs[0].output, 0)
    # The tuned tolerance is what is being compared with.
    return got.shape == expected.shape and np.allclose(got, expected, rtol=1e-3, atol=1e-3)
