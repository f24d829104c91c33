"""The base class for JAX layers: everything but building the layer.

    from jax import shard_map
    from jax.sharding import PartitionSpec as P

    from conformance.adapters.jax_adapter import JaxAdapter, Layer

    class Mine(JaxAdapter):
        def build(self, layer: Layer):
            return lambda parameters, x: my_layer(parameters["weight"], parameters.get("bias"), x, layer.mesh)

and `pytest conformance --impl mine.py:Mine`. One process holds all ranks: rank r of a group is the r-th device of its
mesh, out of four CPU devices. They must be there before JAX first looks for devices, so this module asks for them where
it is imported, and is imported in a rank's process only.

What a layer is given lies on the mesh as the contract says, and what it returns must. A value of which every rank holds
a term of its own (the input of reduce, the output of copy, that of a row layer with reduce_output=False) is one array
with a further dimension of size P in front, of which rank r holds the r-th entry.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from conformance.adapters.protocol import Declaration, Group
from spec import Case
from spec.faults import arguments
from spec.placements import Placement, Sharded

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
# On CPUs products are computed in their dtype anyway; elsewhere float32 would be rounded to bfloat16.
jax.config.update("jax_default_matmul_precision", "highest")
# Where JAX_COMPILATION_CACHE_DIR names a folder, small programs are kept there too.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

_FUNCTIONS: Final = "a layer is a function of its parameters"
# What JAX has no word for, or does by itself.
_NO_PROCEDURE: Final = {
    "delay": "one process starts all devices, so none is late",
    "no-grad": "JAX has no grad mode; inference calls the forward alone",
    "init": "draws no initial values",
    "state-dict": f"{_FUNCTIONS}, which are arrays without a state dict",
    "deepcopy": f"{_FUNCTIONS} and holds nothing that could be copied",
    "pickle": f"{_FUNCTIONS} and holds nothing that could be pickled",
    "functional-call": f"{_FUNCTIONS}, so every call is one",
    "checkpoint-reentrant": "jax.checkpoint has one variant, which is procedure checkpoint",
    "compile-inductor": "JAX has one compiler, which is procedure compile",
}
_SIZES: Final = "a layer takes its sizes from its parameters, and arrays may be empty"
_PROMOTES: Final = "JAX promotes dtypes"


@dataclass(frozen=True)
class Layer:
    """What an adapter is asked to build: the arguments of one layer, or of one of the four functions.

    Attributes:
        kind: column, row, copy, reduce, gather or scatter.
        in_features, out_features: of the whole layer (a bad argument may be anything here).
        bias: whether the layer has one.
        dtype: of the parameters and the input.
        mesh: the group's devices, along the one axis `axis`.
        flags: column: gather_output, skip_bias_add; row: input_is_parallel, reduce_output, skip_bias_add.
        dim: of gather and scatter.
    """

    kind: str
    in_features: Any
    out_features: Any
    bias: bool
    dtype: np.dtype
    mesh: Mesh
    axis: str
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    dim: int = -1

    @property
    def size(self) -> int:
        """P, the number of ranks."""
        return int(self.mesh.size)


class JaxAdapter:
    """An implementation in JAX, one process for all ranks.

    A subclass writes `build`; the rest has defaults for kernels of JAX's order, `[in_features, out_features]`.

    Attributes:
        name: for the header.
        layers: which of column, row, copy, reduce, gather, scatter it has.
        flags: the layers' flags that it has; cases that need another are declined.
        kernel: the order of the weight's dimensions, "in out" or the contract's "out in".
        axis: the name of the mesh's axis.
        procedures_declined: procedure -> reason, beyond those that JAX has no word for.
        accepts: faults that it accepts on purpose -> reason (other semantics; never a failure).
        strict: SHOULD clauses count as MUST.
        deadline: seconds that a case may take, each of which is compiled first.
    """

    controller = True
    name = ""
    layers: Sequence[str] = ("column", "row")
    flags: Sequence[str] = ("bias",)
    kernel = "in out"
    axis = "tp"
    procedures_declined: Mapping[str, str] = {}
    accepts: Mapping[str, str] = {
        "zero-size": _SIZES,
        "negative-size": _SIZES,
        "fractional-size": _SIZES,
        "master-shape": _SIZES,
        "master-integer": _PROMOTES,
        "input-dtype": _PROMOTES,
        "input-integer": _PROMOTES,
    }
    strict = False
    deadline = 60.0

    def build(self, layer: Layer) -> Callable[..., Any]:
        """The layer: a function (parameters, x) that JAX can trace; for the four functions a function of x.

        `parameters` has the arrays weight and, where the layer has one, bias. It returns an array, or a pair (output,
        bias) for skip_bias_add.
        """
        raise NotImplementedError(f"{type(self).__name__}.build: return a function for a Layer")

    def spec(self, layer: Layer, name: str, placement: Placement) -> PartitionSpec:
        """How a parameter, weight or bias, lies on the mesh; by default as the contract places it."""
        if not isinstance(placement, Sharded):
            return PartitionSpec()
        cut = placement.dim if name == "bias" or self.kernel == "out in" else 1 - placement.dim
        return PartitionSpec(*[None] * cut, layer.axis)

    def versions(self) -> dict[str, str]:
        """Further versions for the header."""
        return {}

    def unsupported(self, case: Case) -> str:
        """A further reason to decline a case, or an empty string."""
        return ""

    def declare(self) -> Declaration:
        """What the implementation says of itself, and the numerics switches of this process."""
        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
        versions |= {"python": platform.python_version(), "numpy": np.__version__} | self.versions()
        flags = {
            "default_matmul_precision": str(jax.config.jax_default_matmul_precision),
            "devices": f"{jax.device_count()} {jax.default_backend()}",
        }
        name = self.name or type(self).__name__
        return Declaration(name, versions, self.strict, controller=True, flags=flags, deadline=self.deadline)

    def declines(self, case: Case) -> str:
        """Why this implementation does not have this case, or an empty string."""
        for kind in ("column", "row") if case.layer == "pair" else (case.layer,):
            if kind not in self.layers:
                return f"has no {kind}"
        asked = {**vars(case), **arguments(case).flags}  # a fault may ask for flags that its case has not
        wanted = [name for name in ("bias", "gather_output", "skip_bias_add") if asked[name]]
        wanted += [name for name in ("input_is_parallel", "reduce_output") if not asked[name]]
        for name in wanted:
            if name not in self.flags:
                return f"has no {name}"
        if case.autocast:
            return "JAX has no autocast"
        declined = {**_NO_PROCEDURE, **self.procedures_declined}
        if case.procedure in declined:
            return declined[case.procedure]
        if case.fault in self.accepts:
            return f"accepts it on purpose: {self.accepts[case.fault]}"
        return self.unsupported(case)

    def open(self, group: Group) -> Any:
        """A session that runs cases.

        Raises:
            ValueError: the ranks were given another device than the CPU.
        """
        from conformance.adapters.jax_procedures import Procedures

        if "cpu" not in str(group.device or "cpu"):
            raise ValueError(f"device={group.device}: JAX adapters run on CPU devices; leave out --device")
        return Procedures(self)
