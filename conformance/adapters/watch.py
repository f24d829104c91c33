"""What the suite sees of a PyTorch run: bits of tensors, shared storage, autograd nodes, and the collectives.

Collectives are recorded by a TorchDispatchMode from the `c10d` and `_c10d_functional` operators, whatever API called
them (torch's own CommDebugMode counts the same operators). Waits and barriers are none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.adapters.progress import Progress
from spec import Array, Collective

KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_reduce_": "all-reduce",
    "all_reduce_coalesced": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_coalesced_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "broadcast_": "broadcast",
    "broadcast": "broadcast",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
    "all_to_all_single": "all-to-all",
    "gather_": "gather",
    "scatter_": "scatter",
    "reduce_": "reduce",
    "send": "p2p",
    "recv_": "p2p",
    "recv_any_source_": "p2p",
}
# Operators whose first argument is the output; the input payload is the second.
_OUTPUT_FIRST = {
    "allgather_",
    "_allgather_base_",
    "reduce_scatter_",
    "_reduce_scatter_base_",
    "alltoall_",
    "alltoall_base_",
    "gather_",
    "scatter_",
    "allgather_coalesced_",
    "allgather_into_tensor_coalesced_",
    "reduce_scatter_tensor_coalesced_",
}
_NAMESPACES = ("c10d", "_c10d_functional")


class CollectiveLog(TorchDispatchMode):
    """Records every collective that this rank enters while the mode is on.

    Attributes:
        phase: written into each record; the session moves it from forward to backward.
        delay: seconds to wait before entering each collective.
    """

    def __init__(self, announce: Callable[[str], None] | Progress) -> None:
        super().__init__()
        self.entries: list[Collective] = []
        self.phase = "forward"
        self.delay = 0.0
        self._progress = announce if isinstance(announce, Progress) else Progress(announce)
        self._waits = ExitStack()

    def another(self) -> CollectiveLog:
        """A log for another run of the same case, whose announcements are numbered on."""
        return CollectiveLog(self._progress)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would wrap every dispatch for the compiler's sake: 2 s to import it, then 6 us for each operator.
        # Compiled cases run without this mode.
        return False

    def take(self) -> tuple[Collective, ...]:
        """The records since the last call."""
        taken, self.entries = tuple(self.entries), []
        return taken

    def __enter__(self) -> Any:
        self._waits.enter_context(self._progress.watching_waits())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._progress.look()
        self._waits.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # first the wrapper, such as DTensor: where it is second, nobody sees what it sends
        self._progress.look()
        name = func.overloadpacket.__name__ if func.namespace in _NAMESPACES else ""
        kind = KINDS.get(name)
        if kind is None:
            return func(*args, **(kwargs or {}))
        number = self._enter(kind, name, args)
        result = func(*args, **(kwargs or {}))
        self._progress.hold(number, result)
        return result

    def _enter(self, kind: str, name: str, args: Any) -> int:
        tensors = list(_tensors(args[1 if name in _OUTPUT_FIRST else 0]))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        dtype = name_of(tensors[0].dtype) if tensors else ""
        self.entries.append(Collective(kind, size, dtype, self.phase, _ranks(args)))
        number = self._progress.enter(f"{kind} {size} B {dtype}")
        if self.delay:
            time.sleep(self.delay)
        return number


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _ranks(args: Any) -> tuple[int, ...] | None:
    """The global ranks of the collective's group."""
    for value in args:
        if isinstance(value, dist.ProcessGroup):
            return tuple(dist.get_process_group_ranks(value))
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in value._type().qualified_name():
            return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(value)))
    names = [value for value in args if isinstance(value, str)]
    if names:
        from torch.distributed.distributed_c10d import _resolve_process_group

        return tuple(dist.get_process_group_ranks(_resolve_process_group(names[-1])))
    return None


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array(tensor: torch.Tensor | None) -> Array | None:
    """A tensor's bits, in row-major order."""
    if tensor is None:
        return None
    plain = tensor.detach().cpu().contiguous()
    carrier = plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain
    return Array(carrier.numpy().tobytes(), name_of(plain.dtype), tuple(plain.shape))


def sharing(mine: Mapping[str, torch.Tensor | None], theirs: Mapping[str, torch.Tensor | None]) -> tuple[str, ...]:
    """Pairs "a/b" whose tensors share storage."""
    others: dict[int, list[str]] = {}
    for name, tensor in theirs.items():
        if tensor is not None and (address := _address(tensor)):
            others.setdefault(address, []).append(name)
    return tuple(
        f"{name}/{other}"
        for name, tensor in mine.items()
        if tensor is not None
        for other in others.get(_address(tensor), ())
        if other != name
    )


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def nodes(output: torch.Tensor) -> list[str]:
    """The names of the autograd nodes behind a tensor, sorted."""
    names: list[str] = []
    pending, done = [output.grad_fn], set[Any]()
    while pending:
        node = pending.pop()
        if node is None or node in done:
            continue
        done.add(node)
        names.append(node.name())
        pending += [parent for parent, _ in node.next_functions]
    return sorted(names)


def graph_collectives(graphs: Iterable[tuple[str, Any]]) -> tuple[Collective, ...]:
    """The collectives in compiled graphs, as (phase, fx graph), in order."""
    return tuple(
        _from_node(phase, node)
        for phase, graph in graphs
        for node in graph.nodes
        if getattr(node.target, "namespace", "") in _NAMESPACES and node.target.overloadpacket.__name__ in KINDS
    )


def _from_node(phase: str, node: Any) -> Collective:
    name = node.target.overloadpacket.__name__
    value = node.args[0].meta["val"]
    return Collective(KINDS[name], value.numel() * value.element_size(), name_of(value.dtype), phase, _ranks(node.args))
