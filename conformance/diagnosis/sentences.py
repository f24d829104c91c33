"""Every sentence that a diagnosis can say, in one place; all of them follow "<subject>: consistent with".

The subject is a tensor (output, weight, bias, gradient of x ...), or what else is wrong (the caller's x, ranks, ...).
"""

from __future__ import annotations

import re
from typing import Final

# The bias in an output.
BIAS_TIMES: Final = "a bias that is counted {k} times"
BIAS_NEVER: Final = "a bias that is never added"
BIAS_DIVIDED: Final = "a bias that is divided by P"
BIAS_SOME_RANKS: Final = "a bias that is added on {ranks} alone"
BIAS_OTHER_SLICE: Final = "another rank's slice of the bias"

# What is a sum over the ranks' terms.
NOT_REDUCED: Final = "a reduction that is missing: each rank holds its own term"
REDUCED_TWICE: Final = "a reduction that is made twice"
AVERAGED: Final = "a reduction that averages"
TERM_MISSING: Final = "a sum without the term of {ranks}"
TERM_TWICE: Final = "a sum in which the term of {ranks} is counted twice"
TERMS_COUNTED: Final = "a sum that counts the ranks' terms {digits} times"
REDUCED_ON_SOME: Final = "a reduction whose result reaches {ranks} alone"
REDUCED_AMONG: Final = "a reduction over some of the ranks alone, each rank with its neighbours"
OTHER_GROUP: Final = "a reduction over ranks of another group"

# What every rank holds for itself: a slice, or an equal copy.
SUMMED: Final = "a sum over the ranks of what each should keep for itself"
MEAN: Final = "a mean over the ranks of what each should keep for itself"
P_TIMES: Final = "a value that is P times too large"
DIVIDED: Final = "a value that is divided by P"
TWICE: Final = "a value that is twice too large"
SCALED: Final = "a value that is {factor} times what it should be"
ZERO: Final = "a value that is zero"
NEGATED: Final = "a value with the wrong sign"
OTHER_SLICE: Final = "{rank}'s slice in place of its own"
RANK_ZEROS: Final = "{rank}'s slice on every rank"
REVERSED: Final = "slices in reversed rank order"
SHIFTED: Final = "slices that are shifted by one rank"
PERMUTED: Final = "slices in rank order {order}"
STRIDED: Final = "slices that are strided, not blocked"
OFF_BY_ONE: Final = "a slice that is shifted by one element"
OTHER_DIMENSION: Final = "a slice along another dimension"
WHOLE: Final = "the whole where a slice should be"
OWN_SLICE_ONLY: Final = "only the rank's own slice right"
NOT_JOINED: Final = "slices that are not joined: each rank holds its own"
INTERLEAVED: Final = "slices joined element by element"
JOINED_ALONG: Final = "slices joined along another dimension"
TRANSPOSED: Final = "a transposed matrix"

# Layers of several parts, and heads of which ranks hold copies.
ONE_BLOCK: Final = "parts that are cut as one block"
PARTS_PERMUTED: Final = "parts in another order"
JOINED_BY_RANK: Final = "slices joined by rank, not by part"
HEADS_INTERLEAVED: Final = "parts that are taken for interleaved ones"
OTHER_PART: Final = "a part that is another rank's slice"
OTHER_COPY: Final = "a key or value head that other ranks should hold"
COPIES_NOT_SUMMED: Final = "a gradient of copies that is not summed: each rank has its own term"
COPIES_AVERAGED: Final = "a gradient of copies that is averaged"
COPIES_OF_ALL: Final = "a gradient of copies that is summed over all ranks"
COPIES_OF_OTHERS: Final = "a gradient of copies that is summed over ranks which hold other heads"
COPIES_OF_FIRST: Final = "a gradient of copies that is that of their first rank"
COPIES_TWICE: Final = "a gradient of copies that is counted once for each copy"
COPIES_OF_ONE_PART: Final = "a gradient of copies that is not summed for the {what} heads"
QUERIES_SUMMED: Final = "a gradient of query rows that is summed with that of copies"

# Gradients that are not there, or there too often.
NO_GRADIENT: Final = "a gradient that is missing on {ranks}"
LOST: Final = "an accumulation that is lost: the first backward's gradient alone"
OVERWRITTEN: Final = "an accumulation that is overwritten: the last backward's gradient alone"
TWICE_ACCUMULATED: Final = "a backward that is accumulated twice"

# Storage and state.
IN_PLACE: Final = "an operation in place on what is the caller's"
SHARES: Final = "storage that is shared with {other}"
VIEW_OF_MASTER: Final = "a view that keeps the whole master alive"
OTHER_CALL: Final = "state of another call"
OTHER_INSTANCE: Final = "state of another instance"
OLD_PARAMETERS: Final = "parameters from before they were overwritten"
CONTIGUOUS_ONLY: Final = "a computation that is right for contiguous tensors only"
UNSTEADY: Final = "a result that changes from run to run"
LATE_RANKS: Final = "a result that is read before its collective has finished"

# Parameters and results of another kind.
HELD_BY_SOME: Final = "a parameter that {ranks} alone holds"
OTHER_SHAPE: Final = "the right numbers in another shape"
OTHER_DTYPE: Final = "another dtype: {what}"
NO_TENSOR: Final = "a return value of another kind: {what}"
OTHER_BIAS: Final = "a returned bias that is not the layer's parameter"
REPLICAS_DIFFER: Final = "a sum that each rank adds up in its own way"
FROZEN_GRADIENT: Final = "a gradient of what is frozen"
GRAPH_KEPT: Final = "a graph where none should be"
NOT_INFERENCE: Final = "a plain tensor where an inference tensor should be"
GRAPH_BREAK: Final = "a graph break: {what} graphs"
OTHER_NODES: Final = "autograd nodes that nn.Linear does not have"
OTHER_BITS: Final = "arithmetic that is not nn.Linear's"

# Initial values and state dicts.
SAME_DRAW: Final = "the same draw on every rank"
OTHER_SCALE: Final = "a draw that is {factor} times as wide as it should be"
OTHER_DRAW: Final = "a draw of its own in place of a slice of the whole weight's"
BIAS_DRAWN: Final = "a bias that does not start at zero"
RANDOM_STATE: Final = "a random state that is not the one that nn.Linear leaves"
OTHER_KEYS: Final = "other names in the state dict: {what}"
NOT_RESTORED: Final = "values that are lost between saving and loading"
LOADED_SILENTLY: Final = "a state dict that does not fit and is taken: {what}"

# Refusals.
ACCEPTED: Final = "a bad argument that {ranks} takes"
REFUSED_LATE: Final = "a refusal that comes after a collective"
GROUP_OUT_OF_STEP: Final = "a refusal after which the group is out of step"
REFUSED_UNLIKE: Final = "a refusal that is not the same on every rank"
REFUSED_AS: Final = "a refusal of another type: {what}"
REFUSED_MUTELY: Final = "a refusal that does not say {what}"

# Rounding.
NARROW_SUM: Final = "sums that are accumulated in less than {dtype}"
NARROW_REDUCTION: Final = "a reduction, or sums before it at P > 1, that lose bits which {dtype} has"

# Ranks and collectives.
COLLECTIVE_EXTRA: Final = "a collective too many: {what}"
COLLECTIVE_MISSING: Final = "a collective that is left out: {what}"
COLLECTIVE_OTHER: Final = "another collective: {what}"
MISMATCH: Final = "ranks in different collectives: {what}"
CRASH: Final = "a crash: {what}"
HANG: Final = "a hang: {what}"

_NEXT: Final = {
    BIAS_TIMES: "Add the bias once, in a row layer after the reduction: inside F.linear every rank adds it.",
    BIAS_NEVER: "Look for the branch that drops the bias.",
    BIAS_DIVIDED: "Add the bias once after the reduction in place of b / P before it.",
    BIAS_SOME_RANKS: "Every rank must add the bias to the reduced sum, not one rank.",
    BIAS_OTHER_SLICE: "Look where the bias is cut or chosen by rank.",
    NOT_REDUCED: "Look for the all-reduce over the tensor-parallel group that this value needs, and for a result of it "
    "that is dropped.",
    REDUCED_TWICE: "Two places reduce the same value; find the second all-reduce.",
    AVERAGED: "Reduce with SUM, not AVG, and without a division by P.",
    TERM_MISSING: "Look for a rank that contributes zeros or an old buffer to the reduction.",
    TERM_TWICE: "Look for a rank that adds its term again after the reduction.",
    TERMS_COUNTED: "Each digit should be 1; look at what the ranks with other digits put into the reduction.",
    REDUCED_ON_SOME: "Use an all-reduce: a reduce leaves the sum on one rank.",
    REDUCED_AMONG: "Reduce over the whole tensor-parallel group, not over a part of it.",
    OTHER_GROUP: "Pass the layer's own process group to every collective, and use the rank in that group.",
    SUMMED: "This value is no partial sum; drop the reduction.",
    MEAN: "This value is no partial sum; drop the reduction.",
    P_TIMES: "A value that is equal on all ranks was summed over them; drop that reduction.",
    DIVIDED: "Look for a division by the world size, in a forward whose backward divides too.",
    TWICE: "Look for a second addition of the same value.",
    SCALED: "Look for a factor of P in the forward or in its backward.",
    ZERO: "Look for a buffer that is allocated and never written, or a detached path.",
    RANK_ZEROS: "Look for a rank that is taken as 0 everywhere: cut by the rank in the group.",
    REVERSED: "Look at the order in which the ranks' slices are cut or joined.",
    SHIFTED: "Look at the rank by which slices are chosen; it is off by one.",
    PERMUTED: "Look at the order in which the ranks' slices are cut or joined.",
    STRIDED: "Cut into contiguous blocks, chunk or narrow, not x[rank::P].",
    OFF_BY_ONE: "Look at the offset of the slice: it starts at rank * size / P.",
    OTHER_DIMENSION: "Look at the dimension of the cut: of a weight, 0 is output features and 1 is input features.",
    WHOLE: "Look for the cut that is missing.",
    OWN_SLICE_ONLY: "Look for a missing all-gather, or for a buffer of which only this rank's part is written.",
    NOT_JOINED: "Look for the all-gather that is missing.",
    INTERLEAVED: "Join whole slices along the dimension; the ranks' dimension was moved to the wrong place.",
    JOINED_ALONG: "An all-gather stacks along dim 0; move the ranks' dimension before the one that was cut.",
    TRANSPOSED: "The weight is [out_features, in_features]; look for a transpose too many or too few.",
    ONE_BLOCK: "Cut each part by itself, then join the slices: gate and up, or query, key and value.",
    PARTS_PERMUTED: "Keep the parts in the order of the master: of qkv query, key, value.",
    JOINED_BY_RANK: "After the all-gather take each rank's slices apart and join those of one part.",
    HEADS_INTERLEAVED: "The master is [W_q; W_k; W_v], all heads of one kind together; convert a checkpoint before.",
    OTHER_PART: "Cut all parts by the same rank.",
    OTHER_COPY: "Rank r holds key head r // c where c ranks hold each, not r % K.",
    COPIES_NOT_SUMMED: "Sum the key and value rows' gradient over the ranks that hold the head, weight and bias alike.",
    COPIES_AVERAGED: "Reduce with SUM: each copy has a term of its own.",
    COPIES_OF_ALL: "Sum over the c neighbouring ranks that hold the head, not over the whole group.",
    COPIES_OF_OTHERS: "The holders of a head are c neighbouring ranks, r // c alike, not every K-th rank.",
    COPIES_OF_FIRST: "A broadcast loses the other copies' terms; sum them.",
    COPIES_TWICE: "Two places sum the copies' gradient, or one multiplies it by c.",
    COPIES_OF_ONE_PART: "Key and value rows have copies alike; sum both.",
    QUERIES_SUMMED: "Sum the key and value rows alone: no other rank holds this rank's query heads.",
    NO_GRADIENT: "Look for a detach, a no_grad, or a backward that returns None for what needs a gradient.",
    LOST: "Look for a backward that writes .grad or reuses a buffer: return gradients, and autograd adds them.",
    OVERWRITTEN: "Look for a backward that assigns .grad: return gradients, and autograd adds them.",
    TWICE_ACCUMULATED: "Look for a backward that adds to .grad and returns the gradient as well.",
    IN_PLACE: "Collectives of c10d write to their argument; clone what is not this layer's own.",
    SHARES: "Return or keep a copy: whoever writes to one of the two changes the other.",
    VIEW_OF_MASTER: "Clone the slice; a view keeps all of the master's memory.",
    OTHER_CALL: "Keep what the backward needs in the autograd context of the call, not on the module or in a buffer.",
    OTHER_INSTANCE: "Look for a buffer or a cache that layers share, keyed by shape or held by the class.",
    OLD_PARAMETERS: "Look for a cached copy of the weight; compute from the parameter itself.",
    CONTIGUOUS_ONLY: "Look for data_ptr, view, as_strided, or a collective on a contiguous temporary whose result is "
    "dropped.",
    UNSTEADY: "Wait for every asynchronous collective before its buffer is read, and write into no shared buffer.",
    NEGATED: "Look for a sign, in the forward or in its backward.",
    OTHER_SLICE: "Look at the rank by which slices are chosen, and at its limits.",
    OTHER_BIAS: "Return the parameter itself, neither divided nor copied.",
    LATE_RANKS: "Wait for the handle of every asynchronous collective before its buffer is read.",
    HELD_BY_SOME: "A replicated parameter is held by every rank, whole; every rank needs its gradient.",
    OTHER_SHAPE: "Give the result the batch dimensions of the input, none and empty ones included.",
    OTHER_DTYPE: "Look for a cast that is missing, or one too many; under autocast compare with F.linear.",
    NO_TENSOR: "Return the output; dist.all_reduce returns None. A pair from every call is declared: always_pair=True.",
    REPLICAS_DIFFER: "Every rank must add in the same order and dtype, or take the sum from one collective.",
    FROZEN_GRADIENT: "Copy requires_grad with the parameter, and ask ctx.needs_input_grad.",
    GRAPH_KEPT: "Look for enable_grad, or a requires_grad_ on the output.",
    NOT_INFERENCE: "Look for inference_mode(False) or a tensor made outside it.",
    GRAPH_BREAK: "Run torch._dynamo.explain on the layer; c10d collectives with a Work handle break graphs.",
    OTHER_NODES: "Take the plain path where the group has one rank.",
    OTHER_BITS: "Take the plain path, F.linear with the same strides, where the group has one rank.",
    SAME_DRAW: "Draw the whole weight from equal random states and cut it, or give every rank its own generator.",
    OTHER_SCALE: "Take fan-in of the whole weight: not of the shard, and not fan-out.",
    OTHER_DRAW: "Draw the whole weight, as nn.Linear does, and keep this rank's slice.",
    BIAS_DRAWN: "Set the bias to zero, after construction and in reset_parameters.",
    RANDOM_STATE: "Draw what nn.Linear draws, the bias included, and leave the generator there.",
    OTHER_KEYS: "Save weight and bias under these names on every rank.",
    NOT_RESTORED: "Save and load the parameter's own bits.",
    LOADED_SILENTLY: "Report missing and unexpected keys and other shapes, as nn.Module does under strict=True.",
    ACCEPTED: "Check the argument on every rank before any collective, and raise.",
    REFUSED_LATE: "Check arguments before the first collective.",
    GROUP_OUT_OF_STEP: "A collective was begun and not ended, or ended on some ranks; check arguments before it.",
    REFUSED_UNLIKE: "Make every rank check, with the same type and text and no rank in it.",
    REFUSED_AS: "Raise ValueError for sizes and flags, TypeError for dtypes, or a subclass.",
    REFUSED_MUTELY: "Name the parameter, its value and what would be right.",
    NARROW_SUM: "Accumulate products in the wide dtype and round once.",
    NARROW_REDUCTION: "Round each rank's sum once, reduce in its dtype, and cast after the reduction, not before.",
    COLLECTIVE_EXTRA: "Find who communicates what nobody needs.",
    COLLECTIVE_MISSING: "Find the branch that leaves it out; an empty batch calls it too.",
    COLLECTIVE_OTHER: "Compare with the table of collectives in SPEC.md.",
    MISMATCH: "Look for a branch on the rank, on data or on a flag before the collective.",
    CRASH: "Read the stack below, innermost call first; replay the case to debug it.",
    HANG: "Read below where each rank stands; one that never came took another branch.",
}
_PATTERNS: Final = {
    re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))): step for template, step in _NEXT.items()
}


_ON_SOME: Final = "; on {ranks}, not on the others"


def on_some(sentence: str, ranks: str) -> str:
    """The sentence of a mistake that not every rank makes."""
    return sentence + _ON_SOME.format(ranks=ranks)


def next_step(sentence: str) -> str:
    """Where to look, or what to do, after a sentence of this catalogue."""
    if sentence.endswith(_ON_SOME.partition("{ranks}")[2]):
        return "Look for a branch on the rank, or for what only some ranks hold."
    return next((step for pattern, step in _PATTERNS.items() if pattern.fullmatch(sentence)), "")
