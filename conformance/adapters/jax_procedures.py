"""The procedures of the contract, run on a JAX layer; each returns its named steps, by rank."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from conformance.adapters.jax_adapter import JaxAdapter, Layer
from conformance.adapters.jax_run import Arrays, Built, Ranks, Run, added, apart, dtype_of
from spec import Case, Inputs, Observation, Placement, Raised, Step, agreement, inputs
from spec.faults import Arguments, arguments
from spec.placements import Floats

Steps = list[list[Step]]
_OURS = Path(__file__).parent


class Session:
    """What procedures run on: builds and runs the layers of one case on one group."""

    def __init__(self, adapter: JaxAdapter, case: Case, group: int) -> None:
        self.adapter, self.case = adapter, case
        self.global_ranks = case.group_ranks[group]
        devices = jax.devices()
        self.ranks = Ranks(Mesh(np.array([devices[r] for r in self.global_ranks]), (adapter.axis,)))
        self.data = [inputs(case, group, number) for number in range(2)]

    def build(self, data: Inputs) -> Built:
        """The layer of the case, its parameters on the mesh."""
        function, layers = self._function()
        places = agreement(self.case).parameters
        parameters = {n: self.put(layers[n], n, value, places[n]) for n, value in data.parameters.items()}
        turned = ("weight", "weight2") if self.adapter.kernel == "in out" else ()
        return Built(function, parameters, frozenset(turned))

    def start(self, built: Built, data: Inputs) -> Run:
        return Run(self.case, self.ranks, built, data)

    def step(self, name: str, built: Built, data: Inputs) -> list[Step]:
        """One forward and backward, and what every rank saw of them."""
        run = self.start(built, data)
        run.forward()
        run.backward()
        return self.seen(name, run)

    def seen(self, name: str, run: Run) -> list[Step]:
        return run.steps(name, self.global_ranks)

    def layer(self, args: Arguments, **changes: Any) -> Layer:
        """What the adapter is asked to build."""
        case = self.case
        asked = Layer(
            kind=case.layer,
            in_features=args.in_features,
            out_features=args.out_features,
            bias=case.bias,
            dtype=dtype_of(case.dtype),
            mesh=self.ranks.mesh,
            axis=self.ranks.axis,
            flags=args.flags,
            dim=args.dim if args.dim is not None else case.dim,
        )
        return replace(asked, **changes)

    def put(self, layer: Layer, name: str, value: Floats, placement: Placement) -> jax.Array:
        """A master on the mesh, in the adapter's order of dimensions."""
        plain = name.removesuffix("2")  # of a pair's second layer
        turned = value.T if plain == "weight" and self.adapter.kernel == "in out" else value
        return self.ranks.put(turned, self.case.dtype, self.adapter.spec(layer, plain, placement))

    def _function(self) -> tuple[Callable[[Arrays, jax.Array], Any], dict[str, Layer]]:
        """(parameters, x) -> what the layer returns, and the layer that each parameter belongs to."""
        case, args = self.case, arguments(self.case)
        if case.layer == "pair":
            return self._pair(args)
        layer = self.layer(args)
        function = self.adapter.build(layer)
        if case.linear:
            return function, {"weight": layer, "bias": layer}
        return lambda parameters, x: function(x), {}

    def _pair(self, args: Arguments) -> tuple[Callable[[Arrays, jax.Array], Any], dict[str, Layer]]:
        case, middle = self.case, self.case.hidden_features
        first = {"gather_output": case.gather_output, "skip_bias_add": False}
        second = {"input_is_parallel": case.input_is_parallel, "reduce_output": True, "skip_bias_add": False}
        one = self.layer(args, kind="column", out_features=middle, flags=first)
        two = self.layer(args, kind="row", in_features=middle, flags=second)
        column, row = self.adapter.build(one), self.adapter.build(two)

        def pair(parameters: Arrays, x: jax.Array) -> Any:
            own = {name: value for name, value in parameters.items() if not name.endswith("2")}
            others = {name[:-1]: value for name, value in parameters.items() if name.endswith("2")}
            return row(others, jax.nn.relu(column(own, x)))

        return pair, {"weight": one, "bias": one, "weight2": two, "bias2": two}


def once(session: Session) -> Steps:
    """Forward and backward; at P = 1 the same with the unsharded layer."""
    case, data = session.case, session.data[0]
    built = session.build(data)
    first = session.step("first", built, data)
    return [first, _dense(session, built, data)] if case.P == 1 and case.linear else [first]


def _dense(session: Session, built: Built, data: Inputs) -> list[Step]:
    """The same arrays through a plain product, in the shape that the layer's output has."""

    def dense(parameters: Arrays, x: jax.Array) -> jax.Array:
        weight = parameters["weight"]
        y = x @ (weight if "weight" in built.turned else weight.T)
        if "bias" in parameters and not session.case.skip_bias_add:
            y = y + parameters["bias"]
        return y[None] if apart(agreement(session.case).output) else y

    return session.step("dense", Built(dense, built.parameters, built.turned), data)


def twice(session: Session) -> Steps:
    built = session.build(session.data[0])
    return [session.step(name, built, session.data[0]) for name in ("first", "second")]


def retain(session: Session) -> Steps:
    run = session.start(session.build(session.data[0]), session.data[0])
    run.forward()
    once = run.backward()
    first = session.seen("first", run)
    run.gradients = added(once, run.backward())
    return [first, session.seen("second", run)]


def accumulate(session: Session) -> Steps:
    built = session.build(session.data[0])
    one, two = (session.start(built, data) for data in session.data)
    one.forward()
    one.backward()
    two.forward()
    two.backward()
    return [session.seen("first", one), _added_up(session, "second", one, two)]


def pipeline(session: Session) -> Steps:
    alone = once(session)[0]
    built = session.build(session.data[0])
    one, two = (session.start(built, data) for data in session.data)
    one.forward()
    two.forward()
    one.backward()
    two.backward()
    return [alone, session.seen("a", one), _added_up(session, "b", one, two)]


def _added_up(session: Session, name: str, one: Run, two: Run) -> list[Step]:
    """The second of two runs: the parameters' gradients are sums, its input's is its own."""
    two.gradients = two.gradients | {n: v for n, v in added(one.gradients, two.gradients).items() if n != "x"}
    return session.seen(name, two)


def update(session: Session) -> Steps:
    before, after = session.data
    built = session.build(before)
    first = session.step("first", built, before)
    built.parameters = session.build(after).parameters
    return [first, session.step("second", built, after)]


def interleave(session: Session) -> Steps:
    alone = once(session)[0]
    one, two = (session.start(session.build(data), data) for data in session.data)
    one.forward()
    two.forward()
    one.backward()
    two.backward()
    return [alone, session.seen("a", one), session.seen("b", two)]


def checkpoint(session: Session) -> Steps:
    data = session.data[0]
    built = session.build(data)
    first = session.step("first", built, data)
    other = Built(jax.checkpoint(built.function), built.parameters, built.turned)
    return [first, session.step("second", other, data)]


def compiled(session: Session) -> Steps:
    """Everything else is compiled; here that is held against the same, operation by operation."""
    data = session.data[0]
    built = session.build(data)
    plain = Built(built.function, built.parameters, built.turned, jit=False)
    return [session.step("first", plain, data), session.step("second", built, data)]


def refuse(session: Session) -> Steps:
    case, P = session.case, session.case.P
    caught: Exception | None = None
    try:
        built = _refused(session, arguments(case))
    except Exception as error:
        caught = error
    # What raises raises while it is traced or placed, before any program runs.
    raised = as_raised(caught) if caught else None
    refused = Step("refused", collectives=() if caught else built.collectives(case.dtype), raised=raised)
    ranks = session.ranks
    each = ranks.put(np.arange(1.0, P + 1), "float32", PartitionSpec(ranks.axis))
    total = jax.shard_map(
        lambda x: lax.psum(x, ranks.axis),
        mesh=ranks.mesh,
        in_specs=PartitionSpec(ranks.axis),
        out_specs=PartitionSpec(),
    )(each)
    return [[refused] * P, [Step("after", output=array) for array in ranks.read(total)]]


def _refused(session: Session, args: Arguments) -> Built:
    """Build and call with the bad argument; the masters fit a size that is bad itself, where an array can."""
    case, terms = session.case, agreement(session.case)
    layer = session.layer(args)
    function = session.adapter.build(layer)
    parameters: Arrays = {}
    if case.linear:
        out, into = max(int(args.out_features), 0), max(int(args.in_features), 0)
        shapes = {"weight": args.weight_shape or (out, into)}
        if case.bias:
            shapes["bias"] = args.bias_shape or (out,)
        for name, shape in shapes.items():
            placed = session.put(layer, name, np.ones(shape), terms.parameters[name])
            parameters[name] = placed.astype(args.weight_dtype) if name == "weight" and args.weight_dtype else placed
    sizes = list(terms.input_shape)
    # The size that is wrong is a rank's own.
    sizes[-1] += args.input_extra * (case.P if local_width(case) else 1)
    sizes[case.dim] += args.cut_extra
    x = session.ranks.put_local(np.ones(sizes), "float32", terms.input.value, apart(terms.input))
    built = Built(function if case.linear else lambda parameters, x: function(x), parameters)
    built.program("forward", built.call, parameters, x.astype(args.input_dtype or case.dtype))
    return built


def local_width(case: Case) -> bool:
    """Whether a rank's input has a slice of the last dimension."""
    return case.layer == "row" and case.input_is_parallel


_PROCEDURES: Mapping[str, Callable[[Session], Steps]] = {
    "twice": twice,
    "retain": retain,
    "accumulate": accumulate,
    "pipeline": pipeline,
    "update": update,
    "interleave": interleave,
    "checkpoint": checkpoint,
    "compile": compiled,
    "refuse": refuse,
}


class Procedures:
    """The session of `conformance.adapters.protocol`: runs cases and hands over what every rank saw."""

    def __init__(self, adapter: JaxAdapter) -> None:
        self.adapter = adapter

    def run(self, case: Case, group: int) -> Sequence[Observation]:
        """What the ranks saw of the case. An exception that the procedure does not expect becomes part of it."""
        # JAX has float64 only where it was asked for; where it was not, a layer's own constants stay narrow.
        with jax.enable_x64(case.dtype == "float64" or case.procedure == "refuse"):
            try:
                steps = _PROCEDURES.get(case.procedure, once)(Session(self.adapter, case, group))
            except Exception as error:
                raised = as_raised(error)
                return [Observation(r, fate="raised", raised=raised) for r in range(case.P)]
        return [Observation(r, {by_rank[r].name: by_rank[r] for by_rank in steps}) for r in range(case.P)]

    def close(self) -> None:
        """Nothing to undo."""


def as_raised(error: BaseException) -> Raised:
    """An exception as data."""
    types = tuple(cls.__name__ for cls in type(error).__mro__ if cls is not object)
    stack = traceback.extract_tb(error.__traceback__)
    # The suite's own frames say nothing to whoever looks for the fault in a layer.
    theirs = [frame for frame in stack if _OURS not in Path(frame.filename).parents] or list(stack)
    lines = [*traceback.format_list(theirs), *traceback.format_exception_only(error)]
    return Raised(types, str(error), "".join(lines))
