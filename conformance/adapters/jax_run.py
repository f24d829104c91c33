"""One forward and backward of one layer on a mesh: what is put on its devices, and what is read back from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conformance.adapters.jax_collectives import collectives
from spec import Array, Case, Collective, Edge, Inputs, Partial, Placement, Sharded, Step, agreement
from spec.contract import needs_gradient, runs_backward
from spec.numerics import encode
from spec.placements import Floats, local

Arrays = dict[str, jax.Array]


class ReturnedNoArray(TypeError):
    """A layer returned something else than an array or a pair; the text is its type."""


def dtype_of(name: str) -> np.dtype:
    """The dtype as JAX has it, bfloat16 too."""
    return np.dtype(jnp.dtype(name))


def apart(edge: Edge) -> bool:
    """Whether every rank has an entry of its own in a further dimension in front."""
    return isinstance(edge.value, Partial) or isinstance(edge.gradient, Partial)


@dataclass(frozen=True)
class Ranks:
    """The devices of one group, by rank."""

    mesh: Mesh

    @property
    def axis(self) -> str:
        return str(self.mesh.axis_names[0])

    def put(self, value: Floats, dtype: str, spec: PartitionSpec) -> jax.Array:
        """A whole value on the mesh."""
        bits = encode(value, dtype)
        numbers = bits.view(dtype_of(dtype)) if dtype == "bfloat16" else bits
        return jax.device_put(numbers, NamedSharding(self.mesh, spec))

    def put_local(self, value: Floats, dtype: str, placement: Placement, apart: bool) -> jax.Array:
        """What the ranks hold of a value under its placement, the terms of a partial one being stacked in `value`."""
        if apart:
            terms = np.stack([local(placement, value, self.mesh.size, r) for r in range(self.mesh.size)])
            return self.put(terms, dtype, PartitionSpec(self.axis))
        cut = placement.dim % value.ndim if isinstance(placement, Sharded) else None
        return self.put(value, dtype, PartitionSpec(*([None] * cut + [self.axis] if cut is not None else [])))

    def read(
        self, value: Any, apart: bool = False, turned: bool = False, like: jax.Array | None = None
    ) -> list[Array | None]:
        """Each rank's own buffer of an array; `turned`: with its dimensions in reverse order.

        Of an empty array JAX puts the whole on every device, whatever was asked for and whatever its sharding says, so
        it is read as one that lies like `like`.
        """
        if value is None:
            return [None] * self.mesh.size
        if like is not None and value.size == 0 and value.shape == like.shape:
            nothing = np.empty(like.sharding.shard_shape(like.shape), value.dtype)
            return [_array(nothing, apart, turned)] * self.mesh.size
        held = {shard.device: shard.data for shard in value.addressable_shards}
        parts = [held.get(device) for device in self.mesh.devices.flat]
        return [None if part is None else _array(np.asarray(part), apart, turned) for part in parts]


def _array(value: np.ndarray, apart: bool, turned: bool) -> Array:
    own = value[0] if apart and value.ndim and len(value) == 1 else value
    plain = np.ascontiguousarray(own.T if turned else own).reshape(own.T.shape if turned else own.shape)
    return Array(plain.tobytes(), str(plain.dtype), plain.shape)


@dataclass
class Built:
    """A layer and what belongs to it.

    Attributes:
        function: (parameters, x) -> output, or (output, bias).
        parameters: its parameters on the mesh, as the contract names them.
        turned: those that are held transposed.
        jit: whether forward and backward are compiled, each as one program, or run operation by operation.
        compiled: the programs, by name and what they are for; the layer's shapes are always the same.
        pair: whether the function returned a pair.
    """

    function: Callable[[Arrays, jax.Array], Any]
    parameters: Arrays
    turned: frozenset[str] = frozenset()
    jit: bool = True
    compiled: dict[str, Any] = field(default_factory=dict[str, Any])
    pair: bool = False

    def call(self, parameters: Arrays, x: jax.Array) -> tuple[jax.Array, Any]:
        """The output, and the bias where a pair was returned."""
        result = self.function(parameters, x)
        self.pair = isinstance(result, tuple) and len(result) == 2
        output, bias = result if self.pair else (result, None)
        if not isinstance(output, jax.Array):
            raise ReturnedNoArray(type(output).__name__)
        return output, bias

    def program(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What the function makes of the arguments, compiled at the first call of this name.

        Options: out_shardings, or nothing.
        """
        if not self.jit:
            result = function(*args)
            return jax.device_put(result, options["out_shardings"]) if options else result
        if name not in self.compiled:
            self.compiled[name] = jax.jit(function, **options).lower(*args).compile()
        return self.compiled[name](*args)

    def collectives(self, dtype: str) -> tuple[Collective, ...] | None:
        """What one forward and backward communicate; None where they were not compiled."""
        if not self.jit:
            return None
        found = [collectives(program.as_text(), name, dtype) for name, program in self.compiled.items()]
        return tuple(entry for program in found for entry in program)


class Run:
    """One forward and backward of a layer. They are programs of their own, so that each has collectives of its own."""

    def __init__(self, case: Case, ranks: Ranks, built: Built, data: Inputs) -> None:
        self.case, self.ranks, self.built = case, ranks, built
        terms = agreement(case)
        self.x = ranks.put_local(data.x, case.dtype, terms.input.value, apart(terms.input))
        self.g = ranks.put_local(data.g, case.compute_dtype, terms.output.gradient, apart(terms.output))
        arrays = {**built.parameters, "x": self.x}
        # A bias that is only returned has a gradient of zeros in JAX, so nobody asks for it.
        needed = needs_gradient(case) - ({"bias"} if case.skip_bias_add else set()) if runs_backward(case) else set()
        self.wanted = {name: value for name, value in arrays.items() if name in needed}
        self.fixed = {name: value for name, value in arrays.items() if name not in needed}
        self.output: jax.Array | None = None
        self.returned_bias: Any = None
        self.returned = ""
        self.gradients: Arrays = {}
        self._pullback: Any = None

    def forward(self) -> None:
        try:
            self.output, self._pullback, self.returned_bias = self.built.program(
                "forward", self._forward, self.wanted, self.fixed
            )
        except ReturnedNoArray as error:
            self.returned = str(error)

    def _forward(self, wanted: Arrays, fixed: Arrays) -> tuple[jax.Array, Any, Any]:
        def call(wanted: Arrays) -> tuple[jax.Array, Any]:
            parameters = {**wanted, **fixed}
            return self.built.call(parameters, parameters.pop("x"))

        if wanted:
            output, pullback, bias = jax.vjp(call, wanted, has_aux=True)
            return output, pullback, bias
        output, bias = call(wanted)
        return output, None, bias

    def backward(self) -> Arrays:
        """The gradients, where there is an output that the upstream gradient fits, placed as what they belong to."""
        output, g = self.output, self.g
        if self._pullback is None or output is None or (output.shape, output.dtype) != (g.shape, g.dtype):
            return {}
        places = {name: value.sharding for name, value in self.wanted.items()}
        self.gradients = self.built.program(
            "backward", lambda pullback, g: pullback(g)[0], self._pullback, g, out_shardings=places
        )
        return self.gradients

    def steps(self, name: str, global_ranks: tuple[int, ...], **facts: Any) -> list[Step]:
        """What there is to see now, by rank."""
        terms, read, turned = agreement(self.case), self.ranks.read, self.built.turned
        held = {n: read(value, turned=n in turned) for n, value in self.built.parameters.items()}
        gradients = {
            n: read(self.gradients.get(n), n == "x" and apart(terms.input), n in turned, self.x if n == "x" else None)
            for n in ("x", *self.built.parameters)
        }
        output, bias = read(self.output, apart(terms.output), like=self.g), read(self.returned_bias)
        log = self.built.collectives(self.case.compute_dtype)
        deleted = tuple(n for n, value in (("x", self.x), ("g", self.g)) if value.is_deleted())
        facts |= {"pair": self.built.pair} | ({"returned": self.returned} if self.returned else {})
        return [
            Step(
                name,
                {n: of_rank for n, by_rank in held.items() if (of_rank := by_rank[r]) is not None},
                output[r],
                bias[r],
                {n: by_rank[r] for n, by_rank in gradients.items()},
                log,
                deleted,
                facts=facts | {"global_rank": global_ranks[r]},
            )
            for r in range(self.ranks.mesh.size)
        ]


def added(one: Mapping[str, jax.Array], two: Mapping[str, jax.Array]) -> Arrays:
    """The gradients of two backwards as a training loop adds them up."""
    return {name: one[name] + two[name] for name in one}
