"""Starting up: who this process is, which group the layers work in, and three plain collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from torch_tp import collectives, debug
from torch_tp.functions import reduce, require_tensor
from torch_tp.group import GroupLike, block, find_group, integer, set_default_group


@dataclass(frozen=True)
class TensorParallelConfig:
    """Where this process stands.

    `rank` and `world_size` count all processes, `local_rank` those of this host, `tp_rank` and `tp_size` those that
    share a layer; `backend` is what they communicate with.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    tp_rank: int = 0
    tp_size: int = 1
    backend: str = "gloo"


def get_tensor_parallel_config() -> TensorParallelConfig:
    """The configuration that the environment describes; starts nothing.

    Reads RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets; without them this is the only process. All processes
    are one tensor-parallel group.

    Raises:
        ValueError: a variable is no integer, or out of range.
    """
    world_size = _variable("WORLD_SIZE", 1, at_least=1)
    rank = _variable("RANK", 0, below=world_size)
    local_rank = _variable("LOCAL_RANK", 0)
    return TensorParallelConfig(rank, world_size, local_rank, rank, world_size, _best_backend())


def init_tensor_parallel(backend: str | None = None, tp_size: int | None = None) -> TensorParallelConfig:
    """Start `torch.distributed` if nobody has, and set the group of all layers with `group=None`.

    Groups are `tp_size` neighbouring ranks: 0 to tp_size - 1, and so on. To be called on every process. A process that
    torchrun did not start becomes a world of one.

    Args:
        backend: None is nccl where there are GPUs, else gloo; or that of the running process group.
        tp_size: how many ranks share a layer; None is all of them.

    Returns:
        This process's configuration, `tp_rank` and `tp_size` those of the new group.

    Raises:
        ValueError: tp_size is no positive integer or does not divide the number of processes; a process group with
            another backend is running; the environment is malformed.
    """
    config = get_tensor_parallel_config()
    if dist.is_initialized():
        config = _running(config, backend)
    elif backend is not None:
        config = replace(config, backend=backend)
    size = _group_size(config.world_size if tp_size is None else tp_size, config.world_size)
    known = dist.Backend.backend_list
    if ":" not in config.backend and config.backend.lower() not in known:
        raise ValueError(f"torch_tp.init_tensor_parallel: backend = {backend!r}; it must be one of {', '.join(known)}")
    if not dist.is_initialized():
        _start(config)
    set_default_group(block(cast(dist.ProcessGroup, dist.group.WORLD), size))
    return replace(config, tp_rank=config.rank % size, tp_size=size)


def all_reduce_sum(tensor: Tensor, group: GroupLike | None = None) -> Tensor:
    """The sum of the ranks' tensors, new, on every rank; `tensor` keeps its values.

    Shapes and dtypes are equal on all ranks. Differentiable, as `torch_tp.reduce` is.

    Raises:
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    find_group("torch_tp.all_reduce_sum", group)
    require_tensor("torch_tp.all_reduce_sum", tensor)
    total = reduce(tensor, group)
    return total.clone() if total is tensor else total


def broadcast_tensor(tensor: Tensor, src_rank: int = 0, group: GroupLike | None = None) -> Tensor:
    """The tensor of one rank, new, on every rank; `tensor` keeps its values.

    Shapes and dtypes are equal on all ranks. `src_rank` is a rank in the group. The result is outside autograd.

    Raises:
        ValueError: the group has no rank `src_rank`.
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    owner = "torch_tp.broadcast_tensor"
    where = find_group(owner, group)
    if where.size > 1 and debug.checking():
        debug.check(owner, where, tensor, {"src_rank": src_rank})
    require_tensor(owner, tensor)
    source = integer(owner, "src_rank", src_rank)
    if not 0 <= source < where.size:
        raise ValueError(f"{owner}: src_rank = {source}; the group has the ranks 0 to {where.size - 1}")
    buffer = tensor.detach().clone(memory_format=torch.contiguous_format)
    return buffer if where.size == 1 else collectives.broadcast(buffer, source, where, owner)


def synchronize_across_ranks(group: GroupLike | None = None) -> None:
    """Return when every rank of the group has called this.

    Raises:
        NoProcessGroupError: `group` is None and nothing is initialized.
    """
    where = find_group("torch_tp.synchronize_across_ranks", group)
    if where.size > 1:
        collectives.barrier(where, "torch_tp.synchronize_across_ranks")


def _variable(name: str, default: int, at_least: int = 0, below: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    wanted = f"an integer of at least {at_least}" + ("" if below is None else f" and less than WORLD_SIZE = {below}")
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < at_least or (below is not None and value >= below):
        raise ValueError(f"torch_tp: the environment variable {name} is {text!r}; it must be {wanted}")
    return value


def _best_backend() -> str:
    return "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _running(config: TensorParallelConfig, backend: str | None) -> TensorParallelConfig:
    """The configuration of the process group that is there already, whoever started it."""
    actual = dist.get_backend()
    if backend is not None and backend.lower() != actual:
        raise ValueError(
            f"torch_tp.init_tensor_parallel: backend = {backend!r}, but a process group with {actual!r} is running; "
            "leave backend out, or call torch.distributed.destroy_process_group() first"
        )
    return replace(config, rank=dist.get_rank(), world_size=dist.get_world_size(), backend=actual)


def _group_size(tp_size: int, world_size: int) -> int:
    owner = "torch_tp.init_tensor_parallel"
    size = integer(owner, "tp_size", tp_size)
    if size < 1 or world_size % size:
        raise ValueError(
            f"{owner}: tp_size = {size} with {world_size} processes; it must be at least 1 and divide the number of "
            "processes"
        )
    return size


def _start(config: TensorParallelConfig) -> None:
    if "nccl" in config.backend:
        _claim_gpu(config.local_rank)
    if config.world_size == 1 and "MASTER_ADDR" not in os.environ:
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in the stubs
        dist.init_process_group(config.backend, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(config.backend)


def _claim_gpu(local_rank: int) -> None:
    present = torch.cuda.device_count()
    if local_rank >= present:
        raise ValueError(
            f"torch_tp.init_tensor_parallel: LOCAL_RANK = {local_rank} on a host with {present} GPUs; start at most "
            "one process per GPU, or pass backend='gloo'"
        )
    torch.cuda.set_device(local_rank)
