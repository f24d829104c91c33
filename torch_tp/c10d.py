"""The two places where `torch.distributed` is not the same, or not public, in every release."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch.distributed as dist

# all_gather_into_tensor is deprecated in favour of the new name where that exists.
all_gather_single: Callable[..., dist.Work | None] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def known_groups() -> Iterable[dist.ProcessGroup]:
    """The process groups that this process is in, oldest first; torch has no public list of them."""
    return list(cast("dict[dist.ProcessGroup, Any]", dist.distributed_c10d._world.pg_map))
