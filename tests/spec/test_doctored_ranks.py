"""Ranks that are lost or raise, refusals that are none, and data that is written to, shared, or sent astray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from doctoring import (
    Change,
    Doctored,
    bits,
    clean,
    collectives,
    facts,
    fate,
    fields,
    one_ulp_off,
    output,
    raised,
    with_facts,
)

from spec import REGISTER, Collective, Observation, Raised, Step, Truth, Violation, judge

ROW = "row P=2 batch=3 in=4 out=4 float32 bias values=small seed=31"
COLUMN = "column P=2 batch=3 in=4 out=4 float32 bias values=small seed=32"
GATHERED = "column P=2 batch=3 in=4 out=4 float32 bias gather_output values=small seed=33"
SUBGROUP = "row P=2 batch=3 in=4 out=4 float32 values=small world=4 groups=interleaved seed=34"
AUTOCAST = "row P=2 batch=3 in=4 out=4 float32 autocast=bfloat16 values=small seed=35"
FROZEN_X = "column P=2 batch=3 in=4 out=2 float32 frozen=x values=small seed=36"
NO_ROWS = "row P=2 batch=0 in=4 out=4 float32 values=small seed=37"
COPY = "copy P=2 batch=3 in=4 float32 values=small seed=38"
GATHER = "gather P=2 batch=3 in=4 float32 values=small seed=39"
REFUSE = "row P=2 batch=3 in=4 out=3 float32 procedure=refuse fault=indivisible seed=40"
TWICE = "row P=2 batch=3 in=4 out=4 float32 values=small procedure=twice seed=40"
RETAIN = "row P=2 batch=3 in=4 out=4 float32 values=small procedure=retain seed=40"
ALONE = "column P=1 batch=3 in=64 out=3 float32 values=gaussian procedure=precision seed=41"
ALONE_EXACT = "row P=1 batch=3 in=4 out=3 float32 bias seed=42"

LOST = fate("raised", raised=raised("RuntimeError", "Connection closed by peer [127.0.0.1]:4242"))
CRASHED = fate("raised", raised=raised("IndexError", "index 4 is out of bounds"), entered=("all-reduce 48 B",))
REDUCE = Collective("all-reduce", 48, "float32", ranks=(0, 1))
BACKWARD = replace(REDUCE, phase="backward")
FORWARD_BUDGET, BACKWARD_BUDGET = "collectives.forward-budget", "collectives.backward-budget"


def _of_a_subclass(seen: Observation) -> Raised:
    """The refusal of another type that is a ValueError too."""
    refusal = seen.steps["refused"].raised
    assert refusal is not None
    return replace(refusal, types=("UnicodeError", *refusal.types))


def alias(*pairs: str) -> Change:
    return fields(shared=pairs)


TABLE = (
    Doctored("ranks.no-exception", "one rank raises", ROW, CRASHED, ranks=(1,)),
    Doctored("ranks.no-exception", "all ranks raise", ROW, CRASHED),
    Doctored("ranks.no-exception", "the connection fails and no rank is to blame", ROW, LOST),
    Doctored("ranks.alive", "one rank dies", ROW, fate("died", exit="signal 11"), ranks=(0,)),
    Doctored("ranks.finish", "all ranks hang", ROW, fate("hung", entered=("all-reduce 48 B",), stack="all_reduce")),
    Doctored(
        "ranks.same-collectives", "rank 1 hangs alone", ROW, fate("hung", entered=("a",)), ("ranks.finish",), (1,)
    ),
    Doctored(
        "ranks.same-collectives",
        "other bytes on rank 1",
        COLUMN,
        collectives(lambda log: tuple(replace(c, bytes=c.bytes + 4) for c in log)),
        (BACKWARD_BUDGET,),
        (1,),
    ),
    Doctored("ranks.same-collectives", "rank 1 enters none", ROW, collectives(lambda log: ()), (FORWARD_BUDGET,), (1,)),
    Doctored("refuse.raises", "accepted", REFUSE, fields("refused", raised=None)),
    Doctored("refuse.raises", "accepted on rank 1", REFUSE, fields("refused", raised=None), ranks=(1,)),
    Doctored("refuse.no-collective", "after an all-reduce", REFUSE, fields("refused", collectives=(REDUCE,))),
    Doctored("refuse.group-usable", "no sum afterwards", REFUSE, fields("after", output=None)),
    Doctored("refuse.group-usable", "a wrong sum", REFUSE, output(lambda s, r, v: v + 1, "after"), ranks=(1,)),
    Doctored(
        "refuse.same-everywhere",
        "another text on rank 1",
        REFUSE,
        fields("refused", raised=raised("ValueError", "rank 1: in_features 5 is not divisible by 2")),
        ranks=(1,),
    ),
    Doctored(
        "refuse.same-everywhere",
        "another type on rank 1",
        REFUSE,
        lambda scene, seen: fields("refused", raised=_of_a_subclass(seen))(scene, seen),
        ranks=(1,),
    ),
    Doctored(
        "refuse.type",
        "an assertion",
        REFUSE,
        fields("refused", raised=raised("AssertionError", "in_features 5 is not divisible by 2")),
    ),
    Doctored("refuse.text", "no numbers", REFUSE, fields("refused", raised=raised("ValueError", "bad in_features"))),
    Doctored("refuse.text", "no text", REFUSE, fields("refused", raised=raised("ValueError", ""))),
    Doctored("purity.inputs", "written to", ROW, fields(mutated=("x",))),
    Doctored("purity.upstream", "written to", COPY, fields(mutated=("g",)), ranks=(1,)),
    Doctored("purity.masters", "weight written to", ROW, fields(mutated=("master_weight",))),
    Doctored("purity.masters", "bias written to", ROW, fields(mutated=("master_bias",))),
    Doctored("purity.no-alias", "output is the input", GATHER, alias("output/x")),
    Doctored("purity.no-alias", "gradient is the upstream", COPY, alias("x.grad/g")),
    Doctored("purity.no-alias", "gradient is the weight", ROW, alias("weight.grad/weight")),
    Doctored("purity.no-alias", "output is the upstream gradient", COPY, alias("output/g")),
    Doctored("purity.no-alias", "gradient is the input", COPY, alias("x.grad/x")),
    Doctored("purity.no-alias", "output is the input of one rank", ALONE_EXACT, alias("output/x")),
    Doctored("parameters.own-storage", "one element for all", ROW, facts(storage_bytes={"weight": 4})),
    Doctored("parameters.own-storage", "a view of the master", ROW, alias("weight/master_weight")),
    Doctored("parameters.own-storage", "bias is the master", ROW, alias("bias/master_bias")),
    Doctored("parameters.own-storage", "keeps the whole", ROW, facts(storage_bytes={"weight": 64})),
    Doctored("one-rank.bits", "another rounding", ALONE, output(one_ulp_off)),
    Doctored("one-rank.bits", "another dtype of a gradient", ALONE_EXACT, fields("dense", gradients={"x": None})),
    Doctored("one-rank.nodes", "a node of its own", ALONE_EXACT, facts(nodes=["AddmmBackward0", "CopyBackward"])),
    Doctored("one-rank.nodes", "a node too few", ALONE_EXACT, facts(nodes=["AccumulateGrad"])),
    Doctored("one-rank.no-collective", "an all-reduce of one", ALONE_EXACT, fields(collectives=(REDUCE,))),
    Doctored(
        "collectives.group", "the world", SUBGROUP, collectives(lambda log: (replace(log[0], ranks=(0, 1, 2, 3)),))
    ),
    Doctored(
        "collectives.group", "the neighbours", SUBGROUP, collectives(lambda log: (replace(log[0], ranks=(0, 1)),))
    ),
    Doctored(
        "collectives.dtype",
        "wider than autocast",
        AUTOCAST,
        collectives(lambda log: (replace(log[0], dtype="float32"),)),
    ),
    Doctored(
        "collectives.dtype",
        "narrower than the values",
        ROW,
        collectives(lambda log: (replace(log[0], dtype="bfloat16"),)),
    ),
    Doctored(FORWARD_BUDGET, "twice", ROW, collectives(lambda log: log * 2)),
    Doctored(FORWARD_BUDGET, "twice in the second run", TWICE, collectives(lambda log: log * 2, "second")),
    Doctored(FORWARD_BUDGET, "needless", COLUMN, collectives(lambda log: (REDUCE, *log))),
    Doctored(FORWARD_BUDGET, "none for no rows", NO_ROWS, collectives(lambda log: ())),
    Doctored(
        FORWARD_BUDGET, "whole, not the slice", GATHERED, collectives(lambda log: (replace(log[0], bytes=48), *log[1:]))
    ),
    Doctored(BACKWARD_BUDGET, "needless", ROW, collectives(lambda log: (*log, BACKWARD))),
    Doctored(BACKWARD_BUDGET, "for a frozen input", FROZEN_X, collectives(lambda log: (*log, BACKWARD))),
    Doctored(BACKWARD_BUDGET, "none", COLUMN, collectives(lambda log: ())),
)


@pytest.mark.parametrize("entry", TABLE, ids=str)
def test_a_rank_doctored_in_one_thing_is_named_by_its_clause(entry: Doctored) -> None:
    assert entry.expected == entry.found()


@pytest.mark.parametrize("line", sorted({entry.line for entry in TABLE}))
def test_what_the_doctored_ranks_were_made_from_breaks_no_clause(line: str) -> None:
    scene = clean(line)
    assert not judge(scene.case, scene.truth, scene.seen)


@pytest.mark.parametrize("line", [COPY, COPY.replace("copy", "scatter"), GATHER.replace("P=2", "P=1")])
def test_a_function_that_does_not_compute_may_return_a_view(line: str) -> None:
    scene = clean(line)
    assert not judge(scene.case, scene.truth, [alias("output/x")(scene, seen) for seen in scene.seen])


def lost(*observations: Observation) -> list[str]:
    """What `judge` names, in order."""
    return [finding.clause.name for finding in judge(clean(ROW).case, Truth(()), observations)]


def test_a_lost_rank_is_named_whatever_clauses_are_asked_for_first() -> None:
    clauses = [REGISTER[name] for name in ("row.forward.value", "ranks.alive")]
    findings = judge(clean(ROW).case, Truth(()), [Observation(0, fate="died")], clauses=clauses)
    assert [finding.clause.name for finding in findings] == ["ranks.alive"]


@pytest.mark.parametrize(("given", "expected"), [({}, 0), ({"group": 3}, 3)])
def test_a_finding_says_in_which_group(given: dict[str, int], expected: int) -> None:
    (finding,) = judge(clean(ROW).case, Truth(()), [Observation(0, fate="died")], **given)
    assert expected == finding.group


def test_a_victim_is_never_the_cause() -> None:
    """A rank dies, another's connection closes, a third is stopped: only the dead one is named."""
    closed = raised("RuntimeError", "Connection reset by peer")
    seen = (
        Observation(0, fate="raised", raised=closed, entered=("all-reduce 48 B",)),
        Observation(1, fate="died", exit="signal 9"),
        Observation(2, fate="victim", entered=("all-reduce 48 B",)),
    )
    expected = ["ranks.alive"]
    assert expected == lost(*seen)


def test_a_rank_that_raises_leaves_others_waiting_and_is_named_alone() -> None:
    own = Observation(0, fate="raised", raised=raised("ValueError", "no"))
    expected = ["ranks.no-exception"]
    assert expected == lost(own, Observation(1, fate="victim", entered=("all-reduce 48 B",)))


def test_ranks_that_part_and_then_wait_are_named_by_their_logs() -> None:
    """Neither raised: the logs part, so the hang that follows comes second."""
    one = Observation(0, fate="hung", entered=("all-reduce 48 B", "all-gather 8 B"))
    two = Observation(1, fate="hung", entered=("all-reduce 48 B", "all-reduce 8 B"))
    expected = ["ranks.same-collectives", "ranks.finish"]
    assert expected == lost(one, two)


def said(clause: str, *observations: Observation) -> list[Violation]:
    """The reasons that one clause gives."""
    return list(REGISTER[clause].check(clean(ROW).case, Truth(()), observations))


def test_ranks_that_part_are_told_apart_at_the_first_collective_that_differs() -> None:
    """What they had in common is not repeated."""
    both = ("#1 all-reduce 64 B float32", "#1 waits", "#1 finished")
    one = Observation(0, fate="hung", entered=(*both, "#2 all-reduce 4 B float32", "#2 waits"))
    (violation,) = said("ranks.same-collectives", one, Observation(1, fate="hung", entered=both))
    assert violation.what == "the ranks part at collective #2"
    assert violation.got.splitlines() == [
        "rank 0 entered #2 all-reduce 4 B float32, and waits in it",
        "rank 1 finished #1 all-reduce 64 B float32, never joined #2",
    ]


@pytest.mark.parametrize(
    "logs",
    [
        ((Collective("scatter", 8, "float32"),), (Collective("scatter", 0, ""),)),
        ((Collective("p2p", 4, "float32"),), (Collective("p2p", 4, "float32"),) * 2),
    ],
    ids=["of a scatter only the root has a payload", "messages between two ranks"],
)
def test_what_ranks_need_not_have_in_common_is_not_compared(logs: tuple[tuple[Collective, ...], ...]) -> None:
    seen = [Observation(rank, {"first": Step("first", collectives=log)}) for rank, log in enumerate(logs)]
    assert said("ranks.same-collectives", *seen) == []


def test_a_scatter_that_another_rank_lacks_is_seen() -> None:
    one = Observation(0, {"first": Step("first", collectives=(Collective("scatter", 8, "float32"),))})
    two = Observation(1, {"first": Step("first", collectives=())})
    (violation,) = said("ranks.same-collectives", one, two)
    assert (violation.rank, violation.expected, violation.got) == (1, "scatter", "none")


def test_lost_ranks_that_sent_messages_are_not_said_to_part() -> None:
    one = Observation(0, fate="hung", entered=("#1 p2p 4 B float32", "#2 all-reduce 4 B float32"))
    two = Observation(1, fate="hung", entered=("#1 all-reduce 4 B float32",))
    assert lost(one, two) == ["ranks.finish"]


def test_ranks_that_another_group_s_loss_has_stopped_have_not_parted() -> None:
    """They were at work, one of them further than the other."""
    one = Observation(0, fate="victim", entered=("#1 all-reduce 48 B float32", "#1 waits"))
    assert lost(one, Observation(1, fate="victim")) == []


@pytest.mark.parametrize(
    ("exit_", "what", "advice"),
    [
        ("killed by signal 9 (SIGKILL)\nits last words", "died: killed by signal 9 (SIGKILL)", "memory ran out"),
        ("killed by signal 11 (SIGSEGV)", "died: killed by signal 11 (SIGSEGV)", "native code crashed"),
        ("killed by signal 6 (SIGABRT)", "died: killed by signal 6 (SIGABRT)", "native code gave up"),
        ("exit code 3", "died: exit code 3", "ended the process by itself"),
        ("closed its connection without ending", "died: closed its connection without ending", ""),
    ],
)
def test_a_death_says_where_to_look(exit_: str, what: str, advice: str) -> None:
    (violation,) = said("ranks.alive", Observation(0), Observation(1, fate="died", exit=exit_))
    assert violation.what == what
    assert advice in violation.got
    assert bool(advice) == bool(violation.got)


def test_an_exception_says_whether_all_ranks_raise() -> None:
    own = Observation(0, fate="raised", raised=raised("ValueError", "no"))
    (alone,) = said("ranks.no-exception", own, Observation(1, fate="victim"))
    alike = said("ranks.no-exception", own, replace(own, rank=1))
    transport = said("ranks.no-exception", *(LOST(clean(ROW), seen) for seen in clean(ROW).seen))
    assert alone.what == "raised ValueError: no"
    assert "not every rank raises" in alone.got
    assert ["let its adapter decline" in violation.got for violation in alike] == [True, True]
    assert ["the transport failed" in violation.got for violation in transport] == [True, True]


def hung(rank: int, *entered: str) -> Observation:
    return Observation(rank, fate="hung", entered=entered)


@pytest.mark.parametrize(
    ("seen", "what", "advice"),
    [
        (
            (hung(0, "#1 a", "#1 waits"), Observation(1)),
            "did not finish: it waits in #1 a",
            "it waits for rank 1, which entered no collective, never joined #1",
        ),
        (
            (hung(0, "#1 a", "#1 waits"), hung(1, "#1 b", "#1 waits")),
            "did not finish: it waits in #1 a",
            "it waits for rank 1, which entered #1 b, and waits in it",
        ),
        (
            (hung(0, "#1 a", "#1 waits"), hung(1, "#1 a", "#1 waits")),
            "did not finish: it waits in #1 a",
            "every rank entered #1 alike; look at the group it runs in, and at the transport",
        ),
        (
            (hung(0, "#1 a", "#1 waits", "#1 finished"), Observation(1)),
            "did not finish: it finished #1 a",
            "not known to wait for a collective; its stack says where it is",
        ),
        ((hung(0), Observation(1)), "did not finish: it entered no collective", "not known to wait"),
    ],
)
def test_a_hang_says_for_whom_the_rank_waits(seen: tuple[Observation, ...], what: str, advice: str) -> None:
    violation = said("ranks.finish", *seen)[0]
    assert violation.what == what
    assert violation.got.startswith(advice)


def test_where_a_rank_is_lost_its_values_are_not_judged() -> None:
    """The others' wrong outputs follow from the loss."""
    scene = clean(ROW)
    wrong = replace(scene.seen[1], steps={"first": replace(scene.seen[1].steps["first"], output=bits(np.ones((3, 4))))})
    expected = ["ranks.alive"]
    assert expected == lost(Observation(0, fate="died"), wrong)


def test_collectives_that_cannot_be_observed_break_no_clause() -> None:
    scene = clean(ROW)
    blind = fields(collectives=None)
    assert not judge(scene.case, scene.truth, [blind(scene, seen) for seen in scene.seen])


def test_a_second_backward_has_no_budget() -> None:
    """It repeats the collectives of the backward alone, which no table lists."""
    scene = clean(RETAIN)
    change = collectives(lambda log: (), "second")
    assert not judge(scene.case, scene.truth, [change(scene, seen) for seen in scene.seen])


@pytest.mark.parametrize(("ranks", "expected"), [((1, 3), []), ((3, 1), []), ((0, 2), ["ranks [1, 3]"] * 2)])
def test_a_second_group_has_ranks_of_its_own(ranks: tuple[int, ...], expected: list[str]) -> None:
    scene = clean(SUBGROUP)
    log = (replace(REDUCE, ranks=ranks),)
    seen = [
        replace(entry, steps={"first": with_facts(replace(entry.steps["first"], collectives=log), global_rank=rank)})
        for entry, rank in zip(scene.seen, (1, 3), strict=True)
    ]
    violations = REGISTER["collectives.group"].check(scene.case, scene.truth, seen)
    assert expected == [violation.expected for violation in violations]


def test_the_group_of_a_rank_that_showed_nothing_is_not_asked_for() -> None:
    assert not list(REGISTER["collectives.group"].check(clean(ROW).case, Truth(()), [Observation(0)]))
