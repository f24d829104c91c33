"""The rules of operators that neural networks alone have: norms, attention, convolutions, pools and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_tp.models.cuts import NONE, Cuts
from torch_tp.models.rules import Call, Labels, Operand, contracted, repeated, united
from torch_tp.models.specials import MEETS, within


def norm(call: Call) -> Sequence[Cuts]:
    """A norm over the last dimensions, with a scale and an offset."""
    count = call.first.dim
    for x in call.operands[1:]:
        for labels in x.cuts.values():
            call.notes.lose(labels, "a norm runs over its sharded dimension")
    last = range(count - len(call.args[1]), count)
    return [call.without(call.first.cuts, last, "a norm runs over its sharded dimension")] * len(call.shapes)


def batch_norm(call: Call) -> Sequence[Cuts]:
    """A norm of each channel: channels are sharded with their scale, offset and statistics."""
    x, *others = call.operands
    rest = [dim for dim in x.cuts if dim != 1]
    call.without(x.cuts, rest, "a norm runs over its sharded dimension")
    labels = united(call.notes, [x.at(1), *(each.at(0) for each in others)], MEETS)
    return [{1: labels} if len(shape) == x.dim else {0: labels} if len(shape) == 1 else NONE for shape in call.shapes]


def attention(call: Call) -> Sequence[Cuts]:
    """Scaled dot product attention, `[batch, heads, length, size]`; key and value may have fewer heads."""
    q, k, v = call.args[:3]
    masks = [x for x in call.operands if all(x is not each for each in (q, k, v))]
    for x in call.operands:
        call.without(x.cuts, [x.dim - 2, x.dim - 1], "attention runs over its sharded dimension")
    found: dict[int, Labels] = {}
    for dim in (0, 1):
        heads = q.shape[dim]
        parts = [q.at(dim)]
        for x in (k, v):
            fewer = x.shape[dim] != heads
            parts.append(repeated(call.notes, x.at(dim), x.shape[dim], heads) if fewer else x.at(dim))
        for own, m in [(m.dim - 4 + dim, m) for m in masks]:
            if own >= 0 and m.shape[own] == 1 != heads:
                call.notes.lose(m.at(own), "a mask is repeated along its sharded dimension")
            elif own >= 0:
                parts.append(m.at(own))
        found[dim] = united(call.notes, parts, "attention meets a value that is not sharded")
    # Besides the output, what the backward wants: of batch and heads in the same order, or without either.
    return [found if len(shape) >= 3 else NONE for shape in call.shapes]


def convolution(call: Call) -> Sequence[Cuts]:
    """Of channels: sharded channels in meet a kernel that is sharded likewise, and a sharded kernel gives channels."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    into, out = (0, 1) if transposed else (1, 0)
    call.without(x.cuts, range(2, x.dim), "a convolution runs over its sharded dimension")
    call.without(weight.cuts, range(2, weight.dim), "a convolution runs over its sharded dimension")
    channels = weight.at(out)
    if groups == 1:
        contracted(call.notes, x.at(1), weight.at(into), "a convolution sums over its sharded dimension")
    else:
        call.notes.lose(weight.at(into), "a convolution has groups of channels")
        channels = united(call.notes, [channels, x.at(1)], "a convolution by channels meets what is not sharded")
        if transposed or groups != x.shape[1] or weight.shape[0] != x.shape[1]:
            call.notes.lose(channels, "a convolution has groups of several channels")
            channels = {}
    if isinstance(bias, Operand):
        channels = united(call.notes, [channels, bias.at(0)], MEETS)
    return [{0: x.at(0), 1: channels}]


def spatial(wide: int) -> Callable[[Call], Sequence[Cuts]]:
    """What runs over so many last dimensions: those ahead are batch and channels."""

    def rule(call: Call) -> Sequence[Cuts]:
        x = call.first
        rest = call.without(x.cuts, range(x.dim - wide, x.dim), "it runs over its sharded dimension")
        return [rest] * len(call.shapes)

    return rule


def group_norm(call: Call) -> Sequence[Cuts]:
    """A norm of each group of channels: groups are sharded, with the scale and offset of their channels."""
    x, groups = call.first, call.args[6]
    affine = [each for each in call.operands if each is not x]
    call.without(x.cuts, range(2, x.dim), "a norm runs over its sharded dimension")
    labels = united(call.notes, [x.at(1), *(each.at(0) for each in affine)], MEETS)
    _in_blocks(call, labels, groups, "a norm runs over its sharded dimension")
    found = {0: x.at(0), 1: labels}
    return [found, found, found]


def images(call: Call) -> Sequence[Cuts]:
    """Channels that become so many times more, or fewer: as many blocks as there are of the fewer ones."""
    x, shape = call.first, call.shapes[0]
    dim = x.dim - (2 if len(shape) > x.dim else 3)
    rest = call.without(x.cuts, range(dim + 1, x.dim), "it runs over its sharded dimension")
    _in_blocks(call, rest.get(dim, {}), min(x.shape[dim], shape[dim]), "it runs over its sharded dimension")
    return [rest]


def _in_blocks(call: Call, labels: Labels, count: int, why: str) -> None:
    """A dimension lies in so many blocks, each of which is computed by itself."""
    for label, place in labels.items():
        if count % place.outer:
            call.notes.lose([label], why)
        else:
            call.notes.blocks(label, place, count // place.outer)


def glu(call: Call) -> Sequence[Cuts]:
    """One half of a dimension is the gate of the other: each is sharded by itself, and both alike."""
    dim, x = call.dimension(default=-1), call.first
    if not x.at(dim):
        return [x.cuts]
    half, why = x.shape[dim] // 2, "one half of its sharded dimension is the gate of the other"
    halves = [within(call, dim, start, start + half, why)[dim] for start in (0, half)]
    return [{**x.cuts, dim: united(call.notes, halves, MEETS)}]


def weight_norm(call: Call) -> Sequence[Cuts]:
    """A norm over all dimensions but one, along which the scales lie."""
    v, g = call.args[:2]
    dim = call.dimension(2)
    for x in (v, g):
        call.without(x.cuts, [d for d in x.cuts if d != dim], "a norm runs over its sharded dimension")
    return [{dim: united(call.notes, [v.at(dim), g.at(dim)], MEETS)}] * len(call.shapes)
