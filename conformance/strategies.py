"""Cases as Hypothesis strategies. P and per-rank sizes are drawn, never totals that must divide, never tensor elements.

Every alternative stands simplest first, because that is what Hypothesis shrinks to.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from conformance.items import Item
from conformance.space import (
    LONG,
    SIZES,
    Fields,
    batches_of,
    biases_of,
    canonical,
    cuts_of,
    dims_of,
    fixed_of,
    flag_fields,
    flags_of,
    frozen_of,
    function_sizes,
    groups_of,
    layer_sizes,
    layouts_of,
    long_batches_of,
    long_cuts_of,
    values_of,
)
from spec import Case
from spec.case import FUNCTIONS
from spec.faults import faults_of

_seeds = st.integers(0, 2**16)


@cache
def cases(item: Item) -> st.SearchStrategy[Case]:
    """The cases of an item."""
    if item.layer in FUNCTIONS:
        return _function(item)
    return _precise(item) if item.procedure == "precision" else _layered(item)


@st.composite
def _layered(draw: Any, item: Item) -> Case:
    bias = draw(st.sampled_from(biases_of(item)))
    flags = flag_fields(draw(st.sampled_from(flags_of(item))), bias)
    cut, other = draw(st.sampled_from(cuts_of(item, SIZES[:4]))), draw(st.sampled_from(SIZES))
    last = draw(st.sampled_from(SIZES)) if item.layer == "pair" else 0
    batch = draw(st.sampled_from(batches_of(item)))
    fields = fixed_of(item) | layer_sizes(item, cut, other, last) | flags | {"batch": batch}
    fields["x"], fields["g"] = draw(st.sampled_from(layouts_of(item)))
    fields["frozen"] = draw(st.sampled_from(frozen_of(item, bias)))
    return _finished(draw, item, fields)


def _finished(draw: Any, item: Item, fields: Fields) -> Case:
    """The case of these fields: its groups, its seed and, where it is to be refused, its fault."""
    fields["groups"] = draw(st.sampled_from(groups_of(item)))
    seed = draw(_seeds)
    if item.procedure != "refuse":
        return canonical(Case(**fields, seed=seed))
    del fields["procedure"]
    fault = draw(st.sampled_from(faults_of(Case(**fields))))
    return Case(**fields, procedure="refuse", fault=fault, seed=seed)


@st.composite
def _precise(draw: Any, item: Item) -> Case:
    """Real values, mostly of one sign, with 64 and more terms in one to all of the sums: of Y, of dX, of dW and db."""
    cut = draw(st.sampled_from(long_cuts_of(item)))
    sizes = layer_sizes(item, cut, draw(st.sampled_from(LONG)), 0)
    batch, flags = draw(st.sampled_from(long_batches_of(item, cut))), draw(st.sampled_from(flags_of(item)))
    bias = draw(st.sampled_from(biases_of(item)))
    values = draw(st.sampled_from(values_of(item)))
    chosen = {"batch": batch, "values": values} | flag_fields(flags, bias)
    return Case(**fixed_of(item), **sizes, **chosen, seed=draw(_seeds))


@st.composite
def _function(draw: Any, item: Item) -> Case:
    batch, width = draw(st.sampled_from(batches_of(item))), draw(st.sampled_from(SIZES))
    fields = fixed_of(item) | function_sizes(item, batch, width, draw(st.sampled_from(dims_of(item, batch))))
    fields["values"] = draw(st.sampled_from(values_of(item)))
    fields["x"], fields["g"] = draw(st.sampled_from(layouts_of(item)))
    fields["frozen"] = draw(st.sampled_from(frozen_of(item, bias=False)))
    return _finished(draw, item, fields)
