"""The collectives, each in one place, in the form that the moment needs.

Rules of this seam:

* eager code calls c10d and holds a Work handle, so that a reduction can run under other work;
* under `torch.compiler.is_compiling()` the same collective is a functional one, because a Work
  handle does not trace; nothing here reads the environment or logs then;
* a buffer that is reduced in place was made by our own code, never by the caller;
* a non-contiguous buffer is made contiguous before, and what is returned is what was reduced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from torch_tp import c10d, debug
from torch_tp.group import Group


def start_all_reduce(buffer: Tensor, group: Group, what: str) -> Callable[[], Tensor]:
    """Start summing `buffer` over the group; the returned function waits and gives the sum.

    `buffer` belongs to this function from here on and may be overwritten. `what` names the
    reason in logs and errors.
    """
    process_group = group.require(what, "an all-reduce is needed")
    if torch.compiler.is_compiling():
        pending = torch.ops._c10d_functional.all_reduce(buffer, "sum", group.name)
        return lambda: torch.ops._c10d_functional.wait_tensor(pending)
    total = buffer.contiguous()
    left = debug.enter("all_reduce", what, total, group)
    work = dist.all_reduce(total, group=process_group, async_op=True)

    def finish() -> Tensor:
        _wait(work)
        left()
        return total

    return finish


def all_reduce(buffer: Tensor, group: Group, what: str) -> Tensor:
    """Sum `buffer` over the group, in place where it can be; returns the sum."""
    return start_all_reduce(buffer, group, what)()


def all_gather(local: Tensor, dim: int, group: Group, what: str) -> Tensor:
    """The ranks' equal-shaped tensors joined along `dim` in rank order; new and contiguous.

    `local` has at least one dimension; `dim` is not negative.
    """
    stacked = _all_gather_first(local.contiguous(), group, what)
    if dim == 0:
        return stacked
    shape = list(local.shape)
    ranks_first = stacked.view(group.size, *shape)
    shape[dim] *= group.size
    return ranks_first.movedim(0, dim).contiguous().view(shape)


def _all_gather_first(local: Tensor, group: Group, what: str) -> Tensor:
    process_group = group.require(what, "an all-gather is needed")
    if torch.compiler.is_compiling():
        pending = torch.ops._c10d_functional.all_gather_into_tensor(local, group.size, group.name)
        whole: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
        return whole
    joined = local.new_empty(group.size * local.shape[0], *local.shape[1:])
    left = debug.enter("all_gather", what, local, group)
    _wait(c10d.all_gather_single(joined, local, group=process_group, async_op=True))
    left()
    return joined


def broadcast(buffer: Tensor, src: int, group: Group, what: str) -> Tensor:
    """Overwrite the contiguous `buffer` with that of rank `src` of the group; returns it."""
    process_group = group.require(what, "a broadcast is needed")
    left = debug.enter("broadcast", what, buffer, group, {"src_rank": src})
    source = dist.get_global_rank(process_group, src)
    _wait(dist.broadcast(buffer, source, group=process_group, async_op=True))
    left()
    return buffer


def barrier(group: Group, what: str) -> None:
    """Return when every rank of the group is here."""
    process_group = group.require(what, "a barrier is needed")
    devices = [torch.cuda.current_device()] if dist.get_backend(process_group) == "nccl" else None
    dist.barrier(process_group, device_ids=devices)


def _wait(work: dist.Work | None) -> None:
    # None is what c10d returns to a process outside the group, which `Group` rules out.
    assert work is not None
    work.wait()
