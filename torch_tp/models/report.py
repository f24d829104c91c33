"""What became of each parameter of a model that could be cut, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch_tp.models.changes import Changes
    from torch_tp.models.planning import Derived, Slice

_SUM_OF_INPUT = "all-reduce of the input's gradient"
_SUM_OF_OUTPUT = "all-reduce of the output"
_COLLECTIVES: Mapping[str, tuple[str, str]] = {
    "column": ("", _SUM_OF_INPUT),
    "merged column": ("", _SUM_OF_INPUT),
    "qkv": ("", _SUM_OF_INPUT),
    "column with a whole output": ("all-gather of the output", _SUM_OF_INPUT),
    "attention by heads": (_SUM_OF_OUTPUT, "all-reduce of each input's gradient"),
    "row": (_SUM_OF_OUTPUT, ""),
    "row of a whole input": (_SUM_OF_OUTPUT, "all-gather of the input's gradient"),
}
_WHOLE = "replicated"
_PACKED = "its weight is packed for a quantised kernel, which takes it as a whole"


@dataclass(frozen=True)
class Entry:
    """One module that multiplies with parameters, or one parameter that is cut or used otherwise besides.

    Attributes:
        name: the path of the module, or the name of the parameter where a module has several or others than a linear.
        style: column, merged column, row and what else a plan may say; `slice` of what is cut without being multiplied
            with; `summed` of what stays whole and gets the sum of the ranks' gradients; replicated.
        shape: of the whole parameter, as it is held: `[out_features, in_features]` of a linear.
        bytes_before, bytes_after: of the module's own parameters, or of the one, on this rank.
        forward, backward: the collectives of one pass, where every gradient is wanted.
        reason: why it is replicated, or what else was changed for it.
    """

    name: str
    style: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    forward: str = ""
    backward: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `parallelize` did.

    Attributes:
        world_size: P, the number of ranks that share the model.
        entries: what could be cut, in the order in which the model holds it.
        other_bytes: of all other parameters, which every rank holds whole.
        verified: what `verify=True` found, the same on all ranks; empty without it.
        proven: the calls and modes for which the model was proven to be the dense one.
        notes: calls and modes that could not be followed, and why.
    """

    world_size: int
    entries: Sequence[Entry]
    other_bytes: int
    verified: str = ""
    proven: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def sharded_share(self) -> float:
        """The share of all parameters' bytes that lie in slices, 0 to 1."""
        sharded = sum(entry.bytes_before for entry in self.entries if entry.style not in (_WHOLE, "summed"))
        return sharded / max(1, self._bytes_before)

    @property
    def _bytes_before(self) -> int:
        return sum(entry.bytes_before for entry in self.entries) + self.other_bytes

    def __str__(self) -> str:
        after = sum(entry.bytes_after for entry in self.entries) + self.other_bytes
        cut = sum(entry.style not in (_WHOLE, "summed") for entry in self.entries)
        lines = [
            f"P = {self.world_size}: {cut} of {len(self.entries)} are cut; a rank holds {_size(after)} of"
            f" {_size(self._bytes_before)} ({100 * self.sharded_share:.1f} % of all parameters lie in slices)"
        ]
        wide = max((len(entry.name) for entry in self.entries), default=0)
        named = max((len(entry.style) for entry in self.entries), default=0)
        for entry in self.entries:
            collectives = "; ".join(
                f"{phase}: {what}" for phase, what in (("forward", entry.forward), ("backward", entry.backward)) if what
            )
            sizes = f"{_size(entry.bytes_before)} -> {_size(entry.bytes_after)}"
            told = f"{entry.name:<{wide}}  {entry.style:<{named}}  {list(entry.shape)!s:<15}  {sizes}"
            lines.append("  ".join(filter(None, (told, collectives, entry.reason))))
        if self.other_bytes:
            lines.append(f"all other parameters are whole on every rank: {_size(self.other_bytes)}")
        lines += [f"proven for {', and for '.join(self.proven)}"] if self.proven else []
        lines += self.notes
        if self.verified:
            lines.append(f"verified: {self.verified}")
        return "\n".join(lines)


def report_of(
    model: nn.Module, P: int, changes: Changes, styles: Mapping[str, str], derived: Derived | None, otherwise: str
) -> Report:
    """The report on changes that are about to be made.

    Args:
        styles: path of a linear -> its style, where a plan says it.
        derived: what was proven, where there is no plan.
        otherwise: the reason of a linear of which nothing else is known.
    """
    told = _Teller(changes, styles, derived, otherwise)
    entries: list[Entry] = []
    counted: set[int] = set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        whole = path in changes.layers
        own = {names[id(p)]: p for p in module.parameters(recurse=whole)}
        for name, head, members in told.units(path, module, own):
            new = {each: own[each] for each in members if id(own[each]) not in counted}
            counted |= {id(parameter) for parameter in new.values()}
            entries.append(told.entry(path, name, head, own[head], new))
        if hasattr(module, "_packed_params") and not path.endswith("_packed_params"):
            entries.append(Entry(path or type(module).__name__, _WHOLE, (), 0, 0, reason=_PACKED))
    others = [parameter for parameter in model.parameters() if id(parameter) not in counted]
    return Report(P, tuple(entries), _bytes(others))


class _Teller:
    """What is to be said of one parameter or module."""

    def __init__(self, changes: Changes, styles: Mapping[str, str], derived: Derived | None, otherwise: str) -> None:
        self.changes, self.styles, self.otherwise = changes, styles, otherwise
        self.products = set(derived.products) if derived else set[str]()
        self.why = dict(derived.replicated) if derived else {}
        self.roles: dict[str, str] = {}
        self.slices: dict[str, Slice] = {}
        self.notes: dict[str, str] = {}
        for chain in derived.chains if derived else ():
            self.roles |= dict.fromkeys(chain.columns, "column") | dict.fromkeys(chain.rows, "row")
            self.slices |= chain.slices
            changed = (f"{'.'.join(filter(None, place))} is {value} on a rank" for place, value in chain.sizes.items())
            views = (
                f"{name} at {line} gets the sizes of a rank" for rules in chain.rules.values() for line, name in rules
            )
            self.notes[chain.columns[0]] = ", ".join([*changed, *views])

    def units(
        self, path: str, module: nn.Module, own: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[str, str, Sequence[str]]]:
        """What gets an entry of its own: its name, its main parameter, and all that are told of with it."""
        if path in self.changes.layers and isinstance(module, nn.MultiheadAttention):
            yield path, next(iter(own)), [*own]
            return
        if path.rpartition(".")[0] in self.changes.layers:
            return  # told of with the module that holds it
        linear = isinstance(module, nn.Linear)
        heads = [name for name in own if name in self.products or (linear and own[name].dim() == 2)]
        if len(heads) == 1:
            yield path or type(module).__name__, heads[0], [*own]
            return
        for name in own:
            if name in heads or name in self.changes.parameters or self._summed(path, name):
                yield name, name, [name]

    def entry(
        self,
        path: str,
        name: str,
        head: str,
        parameter: nn.Parameter,
        members: Mapping[str, nn.Parameter],
    ) -> Entry:
        """The entry of one of the units."""
        style, reason = self._style(path, head), self.notes.get(head, "")
        forward, backward = self._collectives(path, style, head)
        layer = self.changes.layers.get(path)
        after = [self.changes.parameters.get(member, each) for member, each in members.items()]
        if style == _WHOLE:
            reason = self.why.get(head, self.otherwise)
        if not members:
            reason = f"it shares its parameters with {head.rpartition('.')[0]}; {reason}"
        copies = max(self.slices[head].copies) if head in self.slices else 1
        if copies > 1:
            reason = "; ".join(filter(None, (f"each slice is on up to {copies} ranks", reason)))
        return Entry(
            name,
            style,
            tuple(parameter.shape),
            _bytes(members.values()),
            _bytes(layer.parameters() if layer is not None else after),
            forward,
            backward,
            reason,
        )

    def _style(self, path: str, head: str) -> str:
        if path in self.styles:
            return self.styles[path]
        if head in self.slices:
            role = self.roles.get(head, "slice")
            return f"merged {role}" if role == "column" and len(self.slices[head].sizes) > 1 else role
        return "summed" if self._summed(path, head) else _WHOLE

    def _collectives(self, path: str, style: str, head: str) -> tuple[str, str]:
        if style == "summed":
            return "", "all-reduce of its gradient"
        if path in self.changes.sharing:
            first, *others = self.changes.sharing[path]
            names = ", ".join(each.rpartition(".")[2] for each in others)
            return "", f"{_SUM_OF_INPUT}, with {names}" if path == first else f"with {first.rpartition('.')[2]}"
        if path in self.changes.layers:
            return _COLLECTIVES[style]
        boundary = self.changes.boundaries.get(path)
        if boundary is None or style == _WHOLE:
            return "", ""
        several = head in self.slices and max(self.slices[head].copies) > 1
        row = style == "row"
        inputs = len(boundary.copied) * (not row)
        backward = [_SUM_OF_INPUT if inputs == 1 else f"all-reduce of {inputs} inputs' gradients"] * bool(inputs)
        backward += ["all-reduce of copies' gradients"] * several
        return (_SUM_OF_OUTPUT if boundary.reduced and row else ""), ", ".join(backward)

    def _summed(self, path: str, name: str) -> bool:
        boundary = self.changes.boundaries.get(path)
        return boundary is not None and name.rpartition(".")[2] in boundary.summed


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _size(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
