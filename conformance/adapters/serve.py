"""The handler inside a rank: a command in, one observation out.

declare             the adapter's Declaration, as JSON
canary <case line>  the result of an all-reduce of known numbers on the case's group
run <case line>     this rank's observation of the case
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from conformance.adapters.find import find
from conformance.adapters.protocol import Group
from conformance.ranks import Raised
from conformance.wire import encode
from spec import Case, Observation


class Server:
    """One rank: the sessions of the groups it is in, opened when first needed, one at a time."""

    def __init__(self, context: Any) -> None:
        self._context = context
        if context.options.get("scratch"):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = context.options["scratch"]
            # They would go to a folder that no variable moves, and take longer than they save.
            os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"
        self._adapter = find(context.options["impl"])
        self._declaration = self._adapter.declare()
        self._open: tuple[tuple[int, ...], Any] | None = None

    def __call__(self, command: bytes) -> bytes | Raised:
        word, _, rest = command.decode().partition(" ")
        if word == "run":
            return self._run(Case.parse(rest))
        if word == "canary":
            return self._canary(Case.parse(rest))
        return json.dumps(asdict(self._declaration) | {"controller": self._adapter.controller}).encode()

    def close(self) -> None:
        """Undo what opening set up."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _run(self, case: Case) -> bytes | Raised:
        if self._adapter.controller:
            return self._control(case)
        ranks = next(ranks for ranks in case.group_ranks if self._context.rank in ranks)
        mine = ranks.index(self._context.rank)
        declined = self._declines(case)
        if declined:
            return encode([Observation(mine, declined=declined)])
        seen = self._session(ranks).run(case, case.group_ranks.index(ranks))
        message = encode(seen)
        return Raised(message) if any(entry.raised for entry in seen) else message

    def _declines(self, case: Case) -> str:
        device = "cuda" if "cuda" in str(self._context.device) else "cpu"
        return self._adapter.declines(case) or self._declaration.semantics.declines(case, device)

    def _control(self, case: Case) -> bytes | Raised:
        groups = range(len(case.group_ranks))
        declined = self._declines(case)
        if declined:
            return encode([Observation(rank, declined=declined) for _ in groups for rank in range(case.P)])
        session = self._adapter.open(Group(0, case.P, device=self._context.device))
        try:
            seen = [entry for group in groups for entry in session.run(case, group)]
        finally:
            session.close()
        return Raised(encode(seen)) if any(entry.raised for entry in seen) else encode(seen)

    def _session(self, ranks: tuple[int, ...]) -> Any:
        if self._open is not None and self._open[0] != ranks:
            self.close()
        if self._open is None:
            context = self._context
            handle, device = context.groups[ranks], context.device
            group = Group(ranks.index(context.rank), len(ranks), handle, device, context.rank, context.log)
            self._open = ranks, self._adapter.open(group)
        return self._open[1]

    def _canary(self, case: Case) -> bytes:
        import torch
        import torch.distributed as dist

        ranks = next(ranks for ranks in case.group_ranks if self._context.rank in ranks)
        total = torch.tensor([ranks.index(self._context.rank) + 1.0], device=self._context.device)
        dist.all_reduce(total, group=self._context.groups[ranks])
        return str(int(total.item())).encode()


def serve(context: Any) -> Callable[[bytes], bytes | Raised]:
    """The factory that ranks call."""
    return Server(context)
