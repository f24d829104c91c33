"""What a cut model must work with: torch's compiler, copies, and its wrappers over the data-parallel axis of a mesh."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from conformance.models.inside.bench import Bench, dense, gradients, lying, once, replace
from conformance.models.inside.catalogue import Built
from conformance.models.inside.rounding import Values, bounds, plainly
from spec.laws import Measured

_REPLICAS: Final = 2


def compiled(bench: Bench, name: str) -> Iterator[Measured]:
    """With a backend that generates no code: what is cut must survive the tracing."""
    exact, bound = bounds(lambda: once(dense(name)), bench.size)
    built = bench.wrapped(name)
    # Without `plainly`, whose mode the compiler would have to trace.
    values = once(replace(built, torch.compile(built.model, backend="aot_eager")))
    found = {key.replace("_orig_mod.", ""): value for key, value in values.items()}
    yield from bench.compare("works.compile", exact, bound, found, lying(built.model))


def copied(bench: Bench, name: str) -> Iterator[Measured]:
    held: list[nn.Module] = []

    def copying(model: nn.Module) -> nn.Module:
        held.append(model)
        return copy.deepcopy(model)

    yield from _same(bench, name, "works.deepcopy", copying)
    touched = "got gradients from the copy's backward" if gradients(held[0]) else ""
    yield Measured("works.deepcopy", "the original", wrong=touched)


def pickled(bench: Bench, name: str) -> Iterator[Measured]:
    yield from _same(bench, name, "works.pickle", lambda model: pickle.loads(pickle.dumps(model)))


def inference(bench: Bench, name: str) -> Iterator[Measured]:
    def run(built: Built) -> Values:
        built.model.eval()
        with torch.inference_mode():
            return {"the output": built.output(built.model(**built.example)).clone()}

    exact, bound = bounds(lambda: run(dense(name)), bench.size)
    wrapped = bench.wrapped(name)
    yield from bench.compare("works.inference-mode", exact, bound, plainly(lambda: run(wrapped)), {})


def _same(bench: Bench, name: str, law: str, change: Callable[[nn.Module], nn.Module]) -> Iterator[Measured]:
    exact, bound = bounds(lambda: once(dense(name)), bench.size)
    built = bench.wrapped(name)
    lies = lying(built.model)
    changed = replace(built, change(built.model))
    yield from bench.compare(law, exact, bound, plainly(lambda: once(changed)), lies)


def fully_sharded(bench: Bench, name: str) -> Iterator[Measured]:
    """Each data-parallel rank has half of the batch; their gradients are averaged, so its loss counts twice."""
    from torch.distributed.fsdp import fully_shard

    yield from _over_a_mesh(bench, name, "works.fsdp2", lambda model, mesh: fully_shard(model, mesh=mesh))


def data_parallel(bench: Bench, name: str) -> Iterator[Measured]:
    from torch.nn.parallel import DistributedDataParallel

    def wrap(model: nn.Module, mesh: Any) -> nn.Module:
        return DistributedDataParallel(model, process_group=mesh.get_group())

    yield from _over_a_mesh(bench, name, "works.ddp", wrap)


def _over_a_mesh(bench: Bench, name: str, law: str, over: Callable[[nn.Module, Any], Any]) -> Iterator[Measured]:
    from torch.distributed.device_mesh import init_device_mesh

    size = bench.size // _REPLICAS
    mesh = init_device_mesh("cpu", (_REPLICAS, size), mesh_dim_names=("data", "tensor"))
    tensor, data = mesh["tensor"], mesh["data"]
    exact, bound = bounds(lambda: once(dense(name)), bench.size)
    own = Bench(bench.adapter, tensor.get_group(), tensor.get_local_rank(), size)
    built = own.wrapped(name)
    lies = lying(built.model)
    mine = {key: own.part(lies[key], whole) for key, whole in exact.items() if key in lies}
    whole = exact.pop("the output")
    model = over(built.model, data)
    rows = slice_of(data.get_local_rank(), len(whole))
    half = halved(replace(built, model), rows)
    values = plainly(lambda: once(half))
    yield from own.compare(law, {"the output": whole[rows]}, bound, {"the output": values.pop("the output")}, {})
    found = {key: _whole(value) for key, value in values.items()}
    yield from own.compare(law, mine, bound, found, {})


def slice_of(rank: int, rows: int) -> slice:
    """The rows of a data-parallel rank."""
    return slice(rank * rows // _REPLICAS, (rank + 1) * rows // _REPLICAS)


def halved(built: Built, rows: slice) -> Built:
    """The same model on some rows of each batch, its loss so scaled that averages over replicas are the whole's."""

    def batches(step: int) -> tuple[dict[str, Tensor], Tensor]:
        given, target = built.batches(step)
        return {name: value[rows] for name, value in given.items()}, target[rows] * _REPLICAS

    return Built(built.name, built.model, batches, built.output, built.prompt)


def _whole(value: Tensor) -> Tensor:
    """What fully_shard left of a tensor, put together again."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


WORKS: Final[Mapping[str, Callable[[Bench, str], Iterator[Measured]]]] = {
    "compile": compiled,
    "deepcopy": copied,
    "pickle": pickled,
    "inference-mode": inference,
    "fsdp2": fully_sharded,
    "ddp": data_parallel,
}
