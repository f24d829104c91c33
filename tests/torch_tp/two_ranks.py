"""Run checks on two real ranks: one spawn for a whole module of checks, a fresh gloo world for each of them.

A check is a function named `check_*`, of `rank_checks` or of another module. Ranks report text and never assert in the
test's process: what comes back for each check is one line per rank, empty where it passed.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
PATIENCE = timedelta(seconds=60)


def run(names: list[str], folder: Path, module: str = "rank_checks") -> dict[str, list[str]]:
    """What each rank says about each check, by the check's name."""
    mp.spawn(_rank, (module, names, str(folder)), nprocs=WORLD)
    told = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    return {name: [one[name] for one in told] for name in names}


def open_world(rank: int, path: str) -> dist.Store:
    """Start a world over a new file. Returns once both ranks are connected, so that either may leave at once."""
    store = dist.FileStore(path, WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    dist.barrier()
    return store


def _rank(rank: int, module: str, names: list[str], folder: str) -> None:
    checks = importlib.import_module(module)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    told = {}
    for name in names:
        os.environ["TP_TEST_STORE"] = os.path.join(folder, f"second-store-{name}")
        store = open_world(rank, os.path.join(folder, f"store-{name}"))
        told[name] = _tell(getattr(checks, name), rank)
        _meet(store, rank)
        dist.destroy_process_group()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(told))


def _meet(store: dist.Store, rank: int) -> None:
    """Wait for the other rank through the store: after a failed check a collective might not match."""
    store.set(f"done {rank}", "")
    store.wait([f"done {1 - rank}"], 2 * PATIENCE)


def _tell(check, rank: int) -> str:
    try:
        check(rank)
    except BaseException:
        return traceback.format_exc()
    return ""
