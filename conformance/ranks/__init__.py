"""Ranks: processes joined in one process group, each of which answers the same command, whatever happens to them.

This room starts them, hands out commands (bytes), and returns one frozen `Reply` per rank within the deadline. It
knows nothing about cases, layers or implementations: what a command means is known to the handler alone, which is
named by a string and imported inside the ranks.
"""

from conformance.ranks.group import BrokenGroup, RankGroup
from conformance.ranks.pool import RankPool
from conformance.ranks.values import Context, Raised, RankSetup, Reply, StartFailed

__all__ = ["BrokenGroup", "Context", "Raised", "RankGroup", "RankPool", "RankSetup", "Reply", "StartFailed"]
