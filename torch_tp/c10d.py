"""The places where `torch.distributed` is not the same, or not public, in every release."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist

# all_gather_into_tensor is deprecated in favour of the new name where that exists.
all_gather_single: Callable[..., dist.Work | None] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def device_of(group: dist.ProcessGroup) -> torch.device:
    """A device whose tensors the group's backend can move."""
    nccl_alone = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl_alone else torch.device("cpu")


def known_groups() -> Iterable[dist.ProcessGroup]:
    """The process groups that this process is in, oldest first; torch has no public list of them."""
    return list(cast("dict[dist.ProcessGroup, Any]", dist.distributed_c10d._world.pg_map))
