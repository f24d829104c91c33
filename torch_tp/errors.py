"""The two errors of this package that have no builtin name; both are RuntimeErrors."""


class NoProcessGroupError(RuntimeError):
    """A collective was needed and there is no process group to run it in."""


class RankMismatchError(RuntimeError):
    """The ranks of a group disagree about something that must be the same on all of them.

    Raised on every rank of the group, and only under `TP_DEBUG=check`.
    """
