"""The JAX adapters in a rank of their own: ours are right where JAX is, mistakes are named, a user's file is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.adapters.jax_collectives import collectives
from conformance.known import Known
from conformance.known.deviations import default_file
from conformance.observers import Options
from conformance.suite import Suite, Verdict
from spec import Case, Collective

USERS = Path(__file__).with_name("jax_for_tests.py")


class Suites:
    """The suite of one implementation at a time, whose rank is kept from test to test: each imports JAX anew."""

    def __init__(self) -> None:
        self._suite: Suite | None = None

    def __call__(self, impl: str) -> Suite:
        if self._suite is None or self._suite.options.impl != impl:
            self.close()
            self._suite = Suite(Options(impl=impl))
        return self._suite

    def close(self) -> None:
        if self._suite is not None:
            self._suite.close()


@pytest.fixture(scope="module")
def suites() -> Iterator[Suites]:
    opened = Suites()
    yield opened
    opened.close()


def examined(suites: Suites, impl: str, line: str) -> Verdict:
    return suites(impl).examine(Case.parse(line))


def broken(verdict: Verdict) -> list[str]:
    """The MUST clauses that failed, in the order of causes."""
    return [finding.clause.name for finding in verdict.findings if finding.clause.level == "MUST"]


SOME = [
    "column P=1 batch=3 in=4 out=2 float32 bias seed=1",
    "column P=2 batch=2x3 in=3 out=4 bfloat16 bias gather_output seed=1",
    "column P=4 batch=none in=3 out=8 float64 bias skip_bias_add seed=1",
    "column P=2 batch=0 in=3 out=4 float32 seed=1",
    "column P=2 batch=3 in=3 out=4 float32 bias frozen=xb seed=1",
    "row P=2 batch=3 in=4 out=3 float16 bias seed=1",
    "row P=4 batch=2 in=8 out=3 float32 bias input_is_parallel=False seed=1",
    "row P=2 batch=2 in=8 out=3 float32 bias input_is_parallel=False world=4 groups=interleaved seed=1",
    "row P=2 batch=2 in=4 out=3 float32 bias skip_bias_add procedure=accumulate seed=1",
    "pair P=2 batch=2 in=3 hidden=4 out=3 float32 bias gather_output input_is_parallel=False seed=1",
    "row P=2 batch=2 in=4 out=3 float32 bias procedure=retain seed=1",
    "row P=2 batch=2 in=4 out=3 float32 bias procedure=pipeline seed=1",
    "row P=2 batch=2 in=4 out=3 float32 bias procedure=update seed=1",
    "column P=2 batch=2 in=4 out=6 float32 bias procedure=interleave seed=1",
    "column P=2 batch=2 in=4 out=6 float32 bias procedure=inference seed=1",
    "column P=2 batch=2 in=4 out=6 float32 bias procedure=checkpoint seed=1",
    "row P=2 batch=2 in=4 out=6 float32 bias input_is_parallel=False procedure=compile seed=1",
    "row P=2 batch=64 in=128 out=3 float32 bias values=positive procedure=precision seed=1",
    "row P=2 batch=1 in=2 out=2 float32 bias procedure=refuse fault=indivisible seed=1",
    "column P=2 batch=1 in=1 out=2 float32 bias skip_bias_add procedure=refuse fault=master-bias-shape seed=1",
    "column P=2 batch=1 in=1 out=2 float32 bias procedure=refuse fault=gathered-and-skipped seed=1",
]
SHARD_MAP_ALONE = [
    "row P=2 batch=2 in=4 out=3 float32 bias skip_bias_add reduce_output=False seed=1",
    "row P=1 batch=2 in=4 out=3 float32 reduce_output=False seed=1",
    "copy P=2 batch=2 in=3 float32 seed=1",
    "reduce P=4 batch=2 in=3 bfloat16 seed=1",
    "reduce P=2 batch=0 in=3 float32 seed=1",
    "gather P=2 batch=4x2 in=3 float32 dim=0 seed=1",
    "scatter P=4 batch=2x8 in=3 float32 dim=-2 seed=1",
    "scatter P=2 batch=2 in=4 float32 procedure=refuse fault=scatter-indivisible seed=1",
    "gather P=2 batch=2 in=4 float32 procedure=refuse fault=dim-out-of-range seed=1",
]


@pytest.mark.parametrize(
    ("impl", "line"),
    [
        *(("jax-shard-map", line) for line in (*SOME, *SHARD_MAP_ALONE)),
        *(("jax-jit", line) for line in SOME),
        *((f"{USERS}:Mine", line) for line in (SOME[0], SOME[5], SOME[11])),
        (f"{USERS}:OutIn", SOME[0]),
        (f"{USERS}:OutIn", "column P=2 batch=2 in=3 out=6 float32 bias seed=1"),
    ],
    ids=lambda word: Path(word).name,
)
def test_a_correct_layer_breaks_no_must(suites: Suites, impl: str, line: str) -> None:
    verdict = examined(suites, impl, line)

    assert not verdict.declined
    assert broken(verdict) == []


MISTAKES = {
    "NotSummed": ("row P=2 batch=2 in=4 out=3 float32 bias seed=1", "row.forward.value"),
    "BiasOnEveryRank": ("row P=2 batch=2 in=4 out=3 float32 bias seed=1", "row.forward.bias-once"),
    "WrongSlice": ("scatter P=2 batch=2 in=4 float32 seed=1", "scatter.forward"),
    "SumsInGathersBackward": ("gather P=2 batch=2 in=4 float32 seed=1", "gather.backward"),
    "HeldWhole": ("column P=2 batch=2 in=3 out=4 float32 seed=1", "column.weight.shard"),
    "Raises": ("column P=2 batch=2 in=3 out=4 float32 seed=1", "ranks.no-exception"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(suites: Suites, name: str) -> None:
    line, clause = MISTAKES[name]

    assert broken(examined(suites, f"{USERS}:{name}", line))[0] == clause


def test_replicas_are_read_from_every_device(suites: Suites) -> None:
    """JAX itself shows the first of what it takes for copies."""
    verdict = examined(suites, f"{USERS}:NotSummed", "row P=4 batch=2 in=8 out=3 float32 seed=1")

    assert "forward.replicas" in broken(verdict)
    assert len({seen.steps["first"].output for seen in verdict.groups[0]}) == 4


def test_a_users_adapter_is_a_controller_of_its_name(suites: Suites) -> None:
    declared = suites(f"{USERS}:Mine").declaration

    assert (declared.name, declared.controller) == ("Mine", True)
    assert declared.flags["devices"] == "4 cpu"


@pytest.mark.parametrize(
    ("impl", "line", "reason"),
    [
        (f"{USERS}:Mine", "column P=2 batch=2 in=3 out=4 float32 gather_output seed=1", "has no gather_output"),
        (f"{USERS}:Mine", "copy P=2 batch=2 in=3 float32 seed=1", "has no copy"),
        ("jax-jit", "row P=2 batch=2 in=4 out=3 float32 reduce_output=False seed=1", "has no reduce_output"),
        ("jax-jit", "row P=2 batch=2 in=4 out=3 float32 autocast=bfloat16 seed=1", "JAX has no autocast"),
    ],
    ids=lambda word: Path(word).name,
)
def test_what_an_adapter_lacks_it_declines(suites: Suites, impl: str, line: str, reason: str) -> None:
    assert examined(suites, impl, line).declined == reason


@pytest.mark.parametrize("impl", ["jax-shard-map", "jax-jit"])
def test_where_jax_deviates_it_still_does(suites: Suites, impl: str) -> None:
    for entry in Known.read(default_file(impl)).deviations:
        assert entry.clause in broken(examined(suites, impl, str(entry.case))), entry.case


def test_the_compilers_choice_of_collectives_is_seen(suites: Suites) -> None:
    verdict = examined(suites, "jax-jit", "column P=2 batch=3 in=5 out=4 float32 gather_output seed=1")
    log = verdict.groups[0][1].steps["first"].collectives

    assert log == (Collective("all-gather", 24, "float32"), Collective("all-reduce", 60, "float32", "backward"))


HLO = """
ENTRY %main.0_spmd (param.3: f32[3,2]) -> (f32[3,4], f32[3,2]) {
  %param.3 = f32[3,2]{1,0} parameter(0), metadata={op_name="all-gather(x)"}
  %convert.1 = f32[6,1]{1,0} convert(%half)
  %ag = f32[3,4]{1,0} all-gather(%param.3), channel_id=1, replica_groups={{0,1}}, dimensions={1}
  ROOT %ar.1 = f32[6,1]{1,0} all-reduce(%convert.1), channel_id=2, use_global_device_ids=true, to_apply=%add_promoted
  %start = (f32[6,1]{1,0}, f32[3,2]{1,0}) all-reduce-start(%convert.1, %param.3), channel_id=3, to_apply=%add
  %done = f32[6,1]{1,0} all-reduce-done(%start)
}
"""


def test_collectives_are_read_from_hlo() -> None:
    """An operand each; what XLA widened by itself counts as it was written."""
    assert collectives(HLO, "backward", "bfloat16") == (
        Collective("all-gather", 24, "float32", "backward"),
        Collective("all-reduce", 12, "bfloat16", "backward"),
        Collective("all-reduce", 24, "float32", "backward"),
        Collective("all-reduce", 24, "float32", "backward"),
    )
