"""Whole models: how long a wrap takes, and a training step beside DTensor with the plan written by hand.

Both cut models start from the same values as the dense one. A model whose logits or gradients are not the dense one's
is not timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Final

from benchmarks.layers import Ranks, refusals, rounds
from benchmarks.layers.figures import Times, ratios, rotated, slowest, spread
from benchmarks.models.sizes import LARGE, SMALL, Size
from benchmarks.table import print_table, seconds_of
from conformance.ranks import RankPool

NAMES: Final = ("torch_tp", "DTensor", "dense")
HANDLER: Final = "benchmarks.models.ranks:models"


@dataclass(frozen=True)
class Measured:
    """What was measured at one world size.

    Attributes:
        times: contender -> seconds of a step on the slowest rank, round by round.
        collectives: contender -> kind -> how many in a step and bytes in all, of rank 0.
        weights: contender -> bytes of a rank's parameters, the most of any; and what is expected.
    """

    P: int
    times: Times
    collectives: Mapping[str, Mapping[str, tuple[int, int]]]
    weights: Mapping[str, float]


def absence(version_of: Callable[[str], str] = metadata.version) -> str:
    """Why there are no models, in one sentence with the command that changes it; `""` if there are."""
    try:
        version_of("transformers")
    except metadata.PackageNotFoundError:
        return "there are no models: transformers is not installed; python -m pip install transformers"
    return ""


def wrap_seconds(size: Size, P: int = 4) -> tuple[float, int]:
    """How long `parallelize` takes on the meta device, for rank 0 of P, and how many linears it cuts."""
    import torch

    import torch_tp
    from benchmarks.models.llama import build

    with torch.device("meta"):
        model: Any = build(size)
    took = seconds_of(lambda: torch_tp.parallelize(model, rank=0, world_size=P))
    return took, sum(entry.style != "replicated" for entry in model.tp_report.entries)


def measure(ranks: Ranks, P: int, size: Size, names: Sequence[str], seconds: float) -> Measured:
    """Build, check, look at one step, then rounds for so many seconds."""
    refused = refusals(ranks.ask("build", size=asdict(size), names=list(names)))
    for name, reason in refused.items():
        print(f"{name} does not take part: at P = {P} it {reason}", flush=True)
    names = [name for name in names if name not in refused]
    if not names:
        raise RuntimeError("no model is left to measure")
    cut = [name for name in names if name != "dense"]
    collectives = {name: tally(found) for name, found in ranks.ask("collectives", names=cut)[0].items()}
    weights = slowest(ranks.ask("weights", names=cut))
    ranks.ask("round", order=names)  # the first step of each takes longer
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in rounds(seconds):
        for name, value in slowest(ranks.ask("round", order=rotated(names, number))).items():
            times[name].append(value)
    return Measured(P, times, collectives, weights)


def tally(found: Sequence[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind, and their bytes."""
    count, size = Counter[str](), Counter[str]()
    for kind, bytes_ in found:
        count[kind] += 1
        size[kind] += bytes_
    return {kind: (count[kind], size[kind]) for kind in sorted(count)}


def main(chosen: argparse.Namespace) -> None:
    if reason := absence():
        print(reason)
        return
    report_wrap(LARGE, chosen.repeats)
    for P in (int(word) for word in chosen.world_sizes.split(",")):
        with RankPool() as pool:
            report(measure(Ranks(pool, P, "cpu", HANDLER), P, SMALL, NAMES, chosen.seconds), SMALL)


def report_wrap(size: Size, repeats: int) -> None:
    found = [wrap_seconds(size) for _ in range(repeats)]
    times = [took for took, _ in found]
    print_table(
        f"parallelize on the meta device: Llama, {size}",
        ["", "first s", "median s", "worst s", "linears cut", "goal"],
        [
            [
                f"{repeats} models",
                *(f"{value:.2f}" for value in (times[0], statistics.median(times), max(times))),
                str(found[0][1]),
                "< 10 s",
            ]
        ],
    )


def report(measured: Measured, size: Size) -> None:
    """The tables of one world size."""
    times = measured.times
    count = len(next(iter(times.values())))
    print_table(
        f"P = {measured.P}: a training step of Llama, {size}, {size.batch} rows of {size.length} tokens, float32:"
        f" {count} rounds",
        ["ms", "median", "quartiles", "to DTensor", "quartiles", "to dense", "quartiles"],
        [[name, *_time(times[name]), *_ratio(times, name, "DTensor"), *_ratio(times, name, "dense")] for name in times],
    )
    kinds = sorted({kind for found in measured.collectives.values() for kind in found})
    print_table(
        f"P = {measured.P}: collectives of one step, and the weights of a rank",
        [
            "",
            *(f"{kind}s{what}" for kind in kinds for what in ("", ", bytes")),
            "weights, bytes",
            "to expected",
            "goal",
        ],
        [[name, *_told(measured, name, kinds)] for name in measured.collectives],
    )


def _told(measured: Measured, name: str, kinds: Sequence[str]) -> list[str]:
    counted = [str(number) for kind in kinds for number in measured.collectives[name].get(kind, (0, 0))]
    held, expected = measured.weights[name], measured.weights["expected"]
    return [*counted, f"{held:.0f}", f"{held / expected:.3f}", "0.95-1.05"]


def _time(seconds: Sequence[float]) -> list[str]:
    found = spread(seconds)
    return [f"{found.middle * 1e3:.1f}", f"{found.lower * 1e3:.1f}-{found.upper * 1e3:.1f}"]


def _ratio(times: Times, name: str, to: str) -> list[str]:
    if to not in times:
        return ["", ""]
    found = ratios(times, name, to)
    return [f"{found.middle:.2f}", f"{found.lower:.2f}-{found.upper:.2f}"]
