"""What can be proven of a model: its graphs, and runs with the shapes of one rank that must do the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from torch_tp.layers.attention import unfit
from torch_tp.models.analysis import Analysis, analyse, known_of, same_inputs
from torch_tp.models.capture import Example, Stand, capture
from torch_tp.models.chains import Chain, candidates
from torch_tp.models.cuts import split_label
from torch_tp.models.facts import Known
from torch_tp.models.failures import Unfollowable
from torch_tp.models.gradients import Gradients, gradients_of
from torch_tp.models.graph import Graph
from torch_tp.models.snapshot import Snapshot
from torch_tp.models.trials import Trial, confirmed


@dataclass(frozen=True)
class Derived:
    """What can be proven of a model's parameters, by their names.

    Attributes:
        chains: those that may be sharded.
        gradients: what happens at the edges of modules for them.
        replicated: other parameters that products multiply with -> why they stay replicated.
        products: all of these -> the modules that hold them.
        layers: those of them that an `nn.Linear` holds which a parallel layer can replace -> its path.
        attention: paths of attention modules that are sharded by heads as modules.
        followed: the calls and modes that were followed.
        notes: what was not, and what a reader should know.
        same_inputs: paths of linears that take the same value, those of one value together.
        decided: lines of the model's code that decide by a size, which another call may have otherwise.
    """

    chains: Sequence[Chain]
    gradients: Gradients
    replicated: Mapping[str, str]
    products: Mapping[str, Collection[str]]
    layers: Mapping[str, str]
    attention: Collection[str] = ()
    followed: Sequence[Example] = ()
    notes: Sequence[str] = ()
    decided: Sequence[str] = ()
    same_inputs: Sequence[Sequence[str]] = ()


def derive(model: nn.Module, P: int, calls: Sequence[Example]) -> Derived:
    """What can be sharded over P ranks, proven for some calls and modes.

    Every dimension of every parameter is followed through the graph of each call, with the dense shapes. Then each
    example runs again with every parameter in the shape of one rank's shard: it must do the same operations with the
    same numbers, with every sharded dimension as one rank has it. Code that has a size of the dense model written into
    it does not; where the size is an attribute of a module of the chain, such as a number of heads, the run is tried
    with that of one rank.

    An example that can be followed in one of both modes only is proven for that one, and a note says so.

    Raises:
        Unfollowable: the module raises without data in both modes, as control flow does that depends on values.
    """
    known = known_of(model)
    attention = _replaceable_attention(model, P, known)
    stand = Stand(known.layers, attention)
    before = Snapshot(model, values=False, also=[(each.args, each.kwargs) for each in calls])
    examples, graphs, notes = _followed(model, calls, stand, before)
    if others := _used_by_others(model, graphs, attention):
        stand = Stand(known.layers, attention - others)
        examples, graphs, notes = _followed(model, calls, stand, before)
    analysis, chains, why, gradients = _best(model, graphs, analyse(model, graphs, known, P))
    trial = Trial(model, analysis, stand, examples, before)
    kept: list[Chain] = []
    for chain, reason in confirmed(trial, chains):
        if reason:
            why |= dict.fromkeys((*chain.columns, *chain.rows), reason)
        else:
            kept.append(chain)
    if len(kept) < len(chains):  # gradients depend on all chains
        kept, gradients = _settled(analysis, kept, why)
    sharded = {name for chain in kept for name in chain.slices}
    lost = {split_label(label)[0]: reason for label, reason in reversed(analysis.ledger.lost.items())}
    products = analysis.products
    whole = {name: why.get(name) or lost.get(name, "no chain has it") for name in products if name not in sharded}
    layers = {name: path for name, path in known.layers.items() if name in products}
    decided = sorted({line for graph in graphs for line in graph.decided})
    chance = sorted({line for graph in graphs for line in graph.by_chance})
    notes += [f"at {', '.join(chance)} a random number decides; one of both ways was followed"] if chance else []
    return Derived(
        kept, gradients, whole, products, layers, analysis.attention, examples, notes, decided, same_inputs(analysis)
    )


def _followed(
    model: nn.Module, calls: Sequence[Example], stand: Stand, before: Snapshot
) -> tuple[list[Example], list[Graph], list[str]]:
    """The graphs of all calls in both modes, and notes of what could not be followed."""
    examples, graphs, notes = list[Example](), list[Graph](), list[str]()
    for call in calls:
        failed: list[Unfollowable] = []
        for example in (replace(call, training=False), replace(call, training=True)):
            try:
                graphs.append(capture(model, example, stand, before=before))
                examples.append(example)
            except Unfollowable as error:
                failed.append(error)
                notes.append(f"{example.label} could not be followed: {error.reason}")
        if len(failed) == 2:
            raise failed[0]
    return examples, graphs, notes


def _replaceable_attention(model: nn.Module, P: int, known: Known) -> frozenset[str]:
    """Paths of attention modules that a layer can replace."""
    found = [(path, each) for path, each in model.named_modules() if isinstance(each, nn.MultiheadAttention)]
    alone = {path for path, each in found if all(known.holders.get(name, 1) == 1 for name in _names(path, each))}
    return frozenset(path for path, each in found if path in alone and not unfit(each, P))


def _names(path: str, module: nn.Module) -> list[str]:
    """The names in the model of all parameters in a module."""
    return [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]


def _used_by_others(model: nn.Module, graphs: Sequence[Graph], attention: frozenset[str]) -> frozenset[str]:
    """The attention modules whose parameters other code uses, or others can see."""
    owner = {name: path for path in attention for name in _names(path, model.get_submodule(path))}
    found: set[str] = set()
    for graph in graphs:
        used = [number for node in graph.nodes if node.operator != "attention" for number in node.inputs]
        used += [each.value for each in graph.exits]
        found.update(graph.values[number].parameter for number in used)
        found.update(graph.leaked)
    return frozenset(owner[name] for name in found if name in owner)


_Choice = tuple[Analysis, list[Chain], dict[str, str], Gradients]


def _best(model: nn.Module, graphs: Sequence[Graph], analysis: Analysis) -> _Choice:
    """The analysis under which most is sharded: labels that can be seen in two ways are tried in the other one too."""
    best = _chosen(analysis)
    ledger = analysis.ledger
    others = [
        (frozenset(ledger.doubtful & ledger.lost.keys()), frozenset[str]()),
        (frozenset[str](), frozenset(ledger.nested & ledger.lost.keys())),
    ]
    for alone, inside in others:
        if alone or inside:
            tried = _chosen(analyse(model, graphs, analysis.known, ledger.P, alone, inside))
            if _parameters(tried) > _parameters(best):
                best = tried
    return best


def _parameters(choice: _Choice) -> int:
    return sum(len(chain.slices) for chain in choice[1])


def _chosen(analysis: Analysis) -> _Choice:
    chains, why = candidates(analysis)
    kept, gradients = _settled(analysis, chains, why)
    return analysis, kept, why, gradients


def _settled(analysis: Analysis, chains: Sequence[Chain], why: dict[str, str]) -> tuple[list[Chain], Gradients]:
    """The chains whose gradients can all be made proper together; the reasons of the others go into `why`."""
    kept = list(chains)
    while True:
        roots = {label: analysis.ledger.root(label) for chain in kept for label in chain.labels}
        gradients = gradients_of(analysis.shardings, roots)
        lost = {each.root: each.why for each in reversed(gradients.lost)}
        if not lost:
            return kept, gradients
        for chain in kept:
            reason = next((lost[root] for label in chain.labels if (root := roots[label]) in lost), "")
            why |= dict.fromkeys((*chain.columns, *chain.rows) if reason else (), reason)
        kept = [chain for chain in kept if not any(roots[label] in lost for label in chain.labels)]
