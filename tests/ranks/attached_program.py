"""A program for torchrun: rank 0 gives the commands in its arguments, each `DEADLINE COMMAND`, prints replies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conformance.ranks import RankSetup
from conformance.ranks.attached import AttachedRanks, serve_attached


def main() -> None:
    setup = RankSetup(
        int(os.environ["WORLD_SIZE"]),
        "handlers:script",
        sys_path=(str(Path(__file__).parent),),
        subgroups=(((0,), (1,)),),
    )
    if os.environ["RANK"] != "0":
        return serve_attached(setup)
    ranks = AttachedRanks(setup)
    for argument in sys.argv[1:]:
        deadline, _, command = argument.partition(" ")
        for reply in ranks.call(command.encode(), float(deadline)):
            payload = reply.payload if reply.payload is None or len(reply.payload) < 100 else len(reply.payload)
            print(reply.rank, reply.fate, payload, reply.entered, reply.stack.strip().rpartition("\n")[2], flush=True)
        print("healthy", ranks.healthy, flush=True)
    ranks.close()


if __name__ == "__main__":
    main()
