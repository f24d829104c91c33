"""Rules in a line: which dimension of which argument goes where, as in `"i k, k j -> i j"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_tp.models.cuts import Cuts
from torch_tp.models.rules import Call, Labels, Operand, contracted, united


def factors(
    line: str, meets: str = "its output meets a value that is not sharded", sums: str = "a product sums over its shards"
) -> Callable[[Call], Sequence[Cuts]]:
    """A rule from a line of dimensions.

    Each argument has the names of its dimensions; the first tensors of a call are the arguments. A name that the
    result has too is sharded in all arguments that have it, or in none. A name that the result has not is summed over.
    A name in capitals cannot be sharded. Arguments with fewer dimensions have the last ones; a dimension of one entry
    is repeated.

    Args:
        meets, sums: why labels are lost at a name of the result, and at one that is summed over.
    """
    left, _, right = line.partition("->")
    given, result = [each.split() for each in left.split(",")], right.split()
    names = dict.fromkeys(name for each in given for name in each)

    def rule(call: Call) -> Sequence[Cuts]:
        found: dict[int, Labels] = {}
        for x in call.operands[len(given) :]:  # such as the ends of runs of rows
            call.without(x.cuts, x.cuts, "it says what belongs together")
        for name in names:
            held = [_at(x, own, name) for x, own in zip(call.operands, given, strict=False) if name in own]
            wide = max((size for size, _ in held), default=1)
            parts = [labels for size, labels in held if size == wide]
            for labels in (labels for size, labels in held if size != wide):
                call.notes.lose(labels, "it is repeated along its sharded dimension")
            if name.isupper():
                for labels in parts:
                    call.notes.lose(labels, "it runs over its shards")
            elif name in result:
                found[result.index(name)] = united(call.notes, parts, meets)
            else:
                contracted(call.notes, parts[0], parts[1], sums)
        return [found] * len(call.shapes)

    return rule


def _at(x: Operand, names: Sequence[str], name: str) -> tuple[int, Labels]:
    """The size and the labels of an operand's dimension."""
    dim = names.index(name) - (len(names) - x.dim)
    return (x.shape[dim], x.at(dim)) if dim >= 0 else (0, {})
