"""The group of ranks that a layer or function works in.

Rules of this seam:

* nothing else asks `torch.distributed` who and how many the ranks are;
* a `Group` is immutable: copying a layer shares it, pickling a layer stores its global ranks;
* "rank" is always the rank in the group. torch sorts the ranks of a group, so this may
  differ from a coordinate in a device mesh;
* a `Group` without a process group never falls back to the world.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch.distributed as dist

from torch_tp import c10d
from torch_tp.errors import NoProcessGroupError

_REMEDY = "call torch_tp.init_tensor_parallel() or torch.distributed.init_process_group() first, or pass group="


class MeshLike(Protocol):
    """What is used of a one-dimensional `torch.distributed.device_mesh.DeviceMesh`."""

    @property
    def ndim(self) -> int:
        """How many dimensions the mesh has; must be 1."""
        ...

    def get_coordinate(self) -> Any:
        """None where this process is not in the mesh."""
        ...

    def get_group(self) -> dist.ProcessGroup:
        """The process group of the mesh's one dimension."""
        ...


GroupLike = dist.ProcessGroup | MeshLike


@dataclass(frozen=True, eq=False)
class Group:
    """One rank's view of a group of `size` ranks.

    `process_group` is None for a detached shard (`rank=`, `world_size=`), and for a group that
    was unpickled before its process group existed (`pending`; then `rank` is -1 and `saved_ranks` are set).
    """

    rank: int
    size: int
    name: str = ""
    process_group: dist.ProcessGroup | None = None
    saved_ranks: tuple[int, ...] | None = None

    @property
    def pending(self) -> bool:
        """True until the process group of an unpickled layer is looked up."""
        return self.saved_ranks is not None

    @property
    def attached(self) -> bool:
        """True where collectives can run."""
        return self.process_group is not None

    @property
    def global_ranks(self) -> tuple[int, ...] | None:
        """The members' ranks in the world, in group order; None for a detached shard."""
        if self.process_group is None:
            return self.saved_ranks
        try:
            return tuple(dist.get_process_group_ranks(self.process_group))
        except KeyError:
            raise NoProcessGroupError(
                f"torch_tp: the process group of this layer was destroyed, so its ranks cannot be told; {_REMEDY}"
            ) from None

    def require(self, owner: str, why: str) -> dist.ProcessGroup:
        """The process group, or a `NoProcessGroupError` that says why one is needed."""
        if self.process_group is None:
            raise NoProcessGroupError(
                f"{owner}: {why}, and this shard was built with rank={self.rank}, "
                f"world_size={self.size} and no process group; {_REMEDY} in place of "
                "rank= and world_size="
            )
        return self.process_group

    def resolved(self) -> Group:
        """This group with its process group; itself unless `pending`."""
        return self if self.saved_ranks is None else _find_by_ranks(self.saved_ranks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        ranks = self.global_ranks
        return (Group, (self.rank, self.size)) if ranks is None else (_restore, (ranks,))


def attached_group(process_group: dist.ProcessGroup) -> Group:
    """The view that this process has of a process group it is a member of."""
    return Group(process_group.rank(), process_group.size(), process_group.group_name, process_group)


# The process groups that `block` made, and the world they were made in.
_blocks: tuple[object, dict[tuple[dist.ProcessGroup, int], dist.ProcessGroup]] = (None, {})


def block(process_group: dist.ProcessGroup, size: int) -> dist.ProcessGroup:
    """The process group of this rank's block, which is `size` neighbouring ranks of a group; `size` divides P.

    The first call makes it, and asking again gives the same one. All ranks of the group must call this.
    """
    global _blocks
    if size == process_group.size():
        return process_group
    world = _world()
    if _blocks[0] is not world:
        _blocks = (world, {})
    made = _blocks[1].get((process_group, size))
    if made is None:
        ranks, mine = dist.get_process_group_ranks(process_group), process_group.rank() // size
        if process_group is world:  # the other blocks are made by all processes too, which torch can always do
            groups = [dist.new_group(ranks[first : first + size]) for first in range(0, len(ranks), size)]
            found = groups[mine]
        else:
            found = dist.new_group(ranks[mine * size : (mine + 1) * size], use_local_synchronization=True)
        made = _blocks[1][process_group, size] = cast(dist.ProcessGroup, found)
    return made


def neighbours(group: Group, size: int) -> Group:
    """`block` of a `Group`; a block of one rank, or of a detached group, is detached."""
    if size == group.size:
        return group
    if size == 1 or group.process_group is None:
        return Group(group.rank % size, size)
    return attached_group(block(group.process_group, size))


# The group of init_tensor_parallel, and the world it was made in: once that world is
# destroyed the group is too.
_default: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def set_default_group(process_group: dist.ProcessGroup) -> None:
    """Make this the group that `group=None` means from here on."""
    global _default
    _default = (process_group, _world())


def find_group(owner: str, group: GroupLike | None = None) -> Group:
    """The group that `group=` means.

    `None` is the group of `init_tensor_parallel`, else the world.

    Raises:
        NoProcessGroupError: None was given and nothing is initialized.
        RuntimeError: this process is not a member, or a mesh is not one-dimensional.
        TypeError: neither a process group nor a mesh.
    """
    if group is None:
        return attached_group(_default_group(owner))
    if isinstance(group, dist.ProcessGroup):
        return attached_group(group)
    if cast(object, group) is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group gives to a process outside
        raise _not_a_member(owner, "group")
    if hasattr(group, "get_group"):
        return attached_group(_group_of_mesh(owner, group))
    raise TypeError(
        f"{owner}: group is {group!r} ({type(group).__name__}); it must be a "
        "torch.distributed.ProcessGroup, a one-dimensional DeviceMesh, or None"
    )


def find_or_detach(owner: str, group: GroupLike | None, rank: Any, world_size: Any) -> Group:
    """The group of `find_group`, or a detached one where `rank` and `world_size` are given.

    Raises:
        ValueError: only one of the two is given, or with a group, or out of range.
    """
    if rank is None and world_size is None:
        return find_group(owner, group)
    if rank is None or world_size is None or group is not None:
        raise ValueError(
            f"{owner}: rank={rank!r}, world_size={world_size!r}, group={group!r}; give rank= and "
            "world_size= together to build a shard without a process group, or group= alone"
        )
    size = integer(owner, "world_size", world_size)
    index = integer(owner, "rank", rank)
    if size < 1 or not 0 <= index < size:
        raise ValueError(
            f"{owner}: rank = {index}, world_size = {size}; world_size must be at least 1 and "
            "rank at least 0 and less than world_size"
        )
    return Group(index, size)


def integer(owner: str, name: str, value: Any) -> int:
    """`value` as an int; a ValueError naming it where it is none (bool is none)."""
    truth_value = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if not truth_value:
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{owner}: {name} = {value!r} is not an integer")


def _default_group(owner: str) -> dist.ProcessGroup:
    if not dist.is_initialized():
        raise NoProcessGroupError(f"{owner}: there is no process group; {_REMEDY}")
    if _default is not None and _default[1] is _world():
        return _default[0]
    return _world()


def _world() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.group.WORLD)


def _group_of_mesh(owner: str, mesh: MeshLike) -> dist.ProcessGroup:
    if mesh.ndim != 1:
        raise RuntimeError(
            f"{owner}: group is a mesh of {mesh.ndim} dimensions; tensor parallelism needs one: "
            "pass a one-dimensional slice of it, such as mesh['tp']"
        )
    if mesh.get_coordinate() is None:
        raise _not_a_member(owner, "mesh")
    return mesh.get_group()


def _not_a_member(owner: str, what: str) -> RuntimeError:
    return RuntimeError(
        f"{owner}: this process (global rank {dist.get_rank()}) is not in the {what} that was "
        "passed as group=; build the layer only on the ranks of its group"
    )


def _restore(ranks: tuple[int, ...]) -> Group:
    """Unpickle: look the process group up now if it is there, else on first use."""
    pending = Group(-1, len(ranks), saved_ranks=ranks)
    found = _search(ranks) if dist.is_initialized() else None
    return pending if found is None else attached_group(found)


def _find_by_ranks(ranks: tuple[int, ...]) -> Group:
    if not dist.is_initialized():
        raise NoProcessGroupError(
            f"torch_tp: a layer unpickled for the global ranks {list(ranks)} was used, and there "
            f"is no process group; {_REMEDY.partition(',')[0]}"
        )
    found = _search(ranks)
    if found is None:
        raise NoProcessGroupError(
            f"torch_tp: a layer unpickled for the global ranks {list(ranks)} was used on global "
            f"rank {dist.get_rank()}, which is in no process group of exactly these ranks; make "
            "one with torch.distributed.new_group or init_tensor_parallel before the first use"
        )
    return attached_group(found)


def _search(ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
    """The default group if it has these ranks, else the world, else the oldest that has."""
    for candidate in [_default_group("torch_tp"), _world(), *c10d.known_groups()]:
        if tuple(dist.get_process_group_ranks(candidate)) == ranks:
            return candidate
    return None
