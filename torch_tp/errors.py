"""The errors of this package that have no builtin name; all are RuntimeErrors."""


class NoProcessGroupError(RuntimeError):
    """A collective was needed and there is no process group to run it in."""


class RankMismatchError(RuntimeError):
    """The ranks of a group disagree about something that must be the same on all of them.

    Raised on every rank of the group: by layers under `TP_DEBUG=check` alone, and by `parallelize` where it compares
    the ranks' models.
    """


class VerificationError(RuntimeError):
    """A model that was sharded with `verify=True` does not compute what it did before.

    Raised on every rank of the group. Names the first module that goes wrong, by how much, and what rounding explains.
    """


class UnprovenCallWarning(UserWarning):
    """A parallel model is called in another way than those for which it was proven to be the dense one."""


class UnprovenCallError(ValueError):
    """The same, where `parallelize(..., strict=True)` asked for an error."""
