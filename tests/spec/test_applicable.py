"""Which cases a clause judges, pinned where that changes: cases that differ in one word, on both sides of the line.

A clause that judges too much counts cases in which it could not fail; one that judges too little never sees its bug.
"""

from __future__ import annotations

import pytest

from spec import REGISTER, Case, applicable

DEFAULTS = {
    "column": ("P=2", "batch=3", "in=4", "out=4"),
    "row": ("P=2", "batch=3", "in=4", "out=4"),
    "pair": ("P=2", "batch=3", "in=4", "hidden=4", "out=4"),
    **dict.fromkeys(("copy", "reduce", "gather", "scatter"), ("P=2", "batch=3", "in=4")),
}
REFUSE = "procedure=refuse fault=zero-size"
REAL = "values=gaussian procedure=precision"

# Clause: the cases that it judges, and those that it does not.
TABLE = {
    "ranks.no-exception": (["row", "copy P=1", "row procedure=init", f"row {REFUSE}"], []),
    "refuse.raises": ([f"row {REFUSE}"], ["row", "row procedure=init"]),
    "collectives.group": (["row", "copy"], ["row P=1", "row procedure=init", f"row {REFUSE}"]),
    "purity.inputs": (["row P=1", "row procedure=no-grad"], ["row procedure=init", "row procedure=state-dict"]),
    "purity.upstream": (["row P=1", "copy"], ["row procedure=no-grad", "row procedure=init", "row frozen=xw"]),
    "purity.masters": (["row", "pair", "row procedure=state-dict"], ["copy", "row procedure=init", f"row {REFUSE}"]),
    "purity.no-alias": (["row", "row procedure=no-grad"], ["row procedure=init"]),
    "column.weight.shard": (
        ["column", "column bias", "column procedure=state-dict"],
        ["row", "column procedure=init", f"column {REFUSE}"],
    ),
    "column.bias.shard": (["column bias"], ["column", "row bias", "column bias procedure=init"]),
    "row.weight.shard": (["row", "row procedure=state-dict"], ["column", "row procedure=init", f"row {REFUSE}"]),
    "row.bias.replicated": (["row bias"], ["row", "column bias", f"row bias {REFUSE}"]),
    "parameters.own-storage": (["row", "pair"], ["copy", "row procedure=init", f"row {REFUSE}"]),
    "copy.forward": (["copy", "copy P=1", "copy procedure=no-grad"], ["reduce", f"copy {REAL}"]),
    "copy.backward": (["copy", "copy procedure=twice"], ["reduce", f"copy {REAL}", "copy procedure=no-grad"]),
    "copy.adjoint": (["copy"], ["reduce", "copy procedure=twice", "copy frozen=x", "copy values=gaussian"]),
    "forward.returns": (["row", "column skip_bias_add"], ["pair", "copy", "row procedure=init"]),
    "column.forward.bias-once": (
        ["column bias", "column bias gather_output"],
        ["column", "column bias skip_bias_add", "row bias", f"column bias {REAL}"],
    ),
    "row.forward.bias-once": (
        ["row bias"],
        ["row", "row bias skip_bias_add", "column bias", "row bias procedure=init"],
    ),
    "column.forward.value": (["column", "column bias"], ["column gather_output", "row", f"column {REAL}"]),
    "column.forward.gathered": (["column gather_output"], ["column", "row"]),
    "row.forward.value": (["row", "row P=1"], ["row reduce_output=False", "column"]),
    "row.forward.partial": (["row reduce_output=False"], ["row", "column"]),
    "forward.replicas": (
        ["row", "column gather_output", "pair", "reduce"],
        ["column", "row reduce_output=False", "row P=1", "row procedure=init", "scatter"],
    ),
    "forward.dtype": (["row", "copy", f"row {REAL}"], ["row procedure=init"]),
    "column.backward.input-grad-reduced": (
        ["column", "column P=1", "column frozen=w"],
        ["column frozen=x", "column procedure=no-grad", f"column {REAL}", "row"],
    ),
    "row.backward.input-grad": (["row"], ["row input_is_parallel=False", "row frozen=x", "column"]),
    "row.backward.input-grad-gathered": (
        ["row input_is_parallel=False"],
        ["row", "row input_is_parallel=False frozen=x"],
    ),
    "column.backward.weight-grad": (["column"], ["column frozen=w", "row", "column procedure=init"]),
    "row.backward.weight-grad": (["row"], ["row frozen=w", "column", "row procedure=inference"]),
    "column.backward.bias-grad": (["column bias"], ["column", "column bias skip_bias_add", "column bias frozen=b"]),
    "row.backward.bias-grad": (["row bias"], ["row", "row bias skip_bias_add", "row bias frozen=b", "column bias"]),
    "backward.replicas": (["row", "copy"], ["row P=1", "row frozen=xw", "row procedure=init", "row procedure=no-grad"]),
    "backward.dtype": (["row P=1", "copy"], ["row frozen=xw", "row procedure=init", "row procedure=no-grad"]),
    "backward.frozen": (
        ["row frozen=x", "row procedure=no-grad", "row bias skip_bias_add"],
        ["row", "row bias", "row skip_bias_add", "row frozen=x procedure=init"],
    ),
    "backward.retain-graph": (["row procedure=retain"], ["row", "row frozen=xw procedure=retain"]),
    "backward.accumulate": (["row procedure=accumulate"], ["row", "row frozen=xw procedure=accumulate"]),
    "pair.forward.value": (["pair", "pair procedure=no-grad"], ["row", "column"]),
    "pair.backward.gradients": (["pair", "pair frozen=x"], ["row", "pair procedure=no-grad", "pair frozen=xw"]),
    "precision.forward": ([f"row {REAL}", f"copy {REAL}"], ["row", "row values=gaussian procedure=init"]),
    "precision.input-grad": ([f"row {REAL}"], ["row", f"row frozen=x {REAL}", "row values=gaussian procedure=no-grad"]),
    "precision.weight-grad": ([f"row {REAL}"], ["row", f"row frozen=w {REAL}", f"copy {REAL}"]),
    "precision.bias-grad": ([f"row bias {REAL}"], [f"row {REAL}", f"row bias skip_bias_add {REAL}", "row bias"]),
    "repeat.same-bits": (["row procedure=twice"], ["row", "row procedure=delay"]),
    "transforms.compile": (["row procedure=compile", "row procedure=compile-inductor"], ["row"]),
    "transforms.fullgraph": (["row procedure=compile", "row procedure=compile-inductor"], ["row"]),
    "modes.no-grad": (["row procedure=no-grad"], ["row", "row procedure=inference"]),
    "instances.pipelined": (["row procedure=pipeline"], ["row", "row values=gaussian procedure=pipeline"]),
    "instances.current-parameters": (["row procedure=update"], ["row", "row values=gaussian procedure=update"]),
    "instances.independent": (["row procedure=interleave"], ["row", "row values=gaussian procedure=interleave"]),
    "init.shards": (["row procedure=init"], ["row", "row procedure=state-dict"]),
    "init.bias-zero": (["row bias procedure=init"], ["row procedure=init", "row bias"]),
    "state.keys": (["row procedure=state-dict"], ["row", "row procedure=init"]),
    "one-rank.bits": (
        ["row P=1", f"row P=1 {REAL}", "row P=1 procedure=no-grad", "row P=1 procedure=inference"],
        ["row", "pair P=1", "copy P=1", "row P=1 procedure=twice", "row P=1 procedure=init"],
    ),
    "one-rank.nodes": (
        ["row P=1 bias"],
        [
            "row",
            "copy P=1",
            *(f"row P=1 {word}" for word in ("bias skip_bias_add", "procedure=no-grad", "procedure=twice")),
        ],
    ),
    "one-rank.no-collective": (["row P=1", "copy P=1", "row P=1 procedure=init"], ["row", f"row P=1 {REFUSE}"]),
    "collectives.dtype": (["row", "copy"], ["row P=1", "row procedure=init"]),
    "collectives.forward-budget": (["row", "row procedure=no-grad"], ["row P=1", "row procedure=init"]),
    "collectives.backward-budget": (
        ["row", "copy"],
        ["row P=1", "row procedure=no-grad", "row frozen=xw", "row procedure=init"],
    ),
}


def case(words: str) -> Case:
    """A case of a layer, with sizes where none are given."""
    layer, *given = words.split()
    keys = {word.partition("=")[0] for word in given}
    return Case.parse(" ".join([layer, *given, *(word for word in DEFAULTS[layer] if word.split("=")[0] not in keys)]))


def judges(name: str, words: str) -> bool:
    return REGISTER[name] in applicable(case(words))


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, (judged, _) in TABLE.items() for words in judged])
def test_a_clause_judges_where_it_could_fail(name: str, words: str) -> None:
    assert judges(name, words)


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, (_, others) in TABLE.items() for words in others])
def test_a_clause_does_not_judge_where_it_could_not(name: str, words: str) -> None:
    assert not judges(name, words)
