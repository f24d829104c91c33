"""What a run says at its beginning and at its end: what was examined with what, and clauses by world size."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.observers import Options
from conformance.reporting.record import verdict
from conformance.suite import Suite
from conformance.tally import Tally
from spec import REGISTER


def header(options: Options, suite: Suite, profile: str, seed: str) -> list[str]:
    """What was examined, with what, on what."""
    declared = suite.declaration
    worlds = ", ".join(map(str, options.world_sizes))
    versions = ", ".join(f"{name} {version}" for name, version in declared.versions.items())
    flags = ", ".join(f"{name}={value}" for name, value in declared.flags.items())
    return [
        f"conformance of {declared.name} ({versions})",
        f"  ranks: world sizes {worlds}, backend {options.backend}, device {options.device}",
        f"  numerics: {flags or 'no switches declared'}",
        f"  examples: profile {profile}, seed {seed}; {len(REGISTER)} clauses, truth by JAX (float64, one CPU device)",
        *(f"  declared: {sentence}" for sentence in declared.semantics.sentences()),
        *(f"  note: {note}" for note in declared.notes),
    ]


def closing_table(tally: Tally, worlds: Sequence[int], not_run: Sequence[str], strict: bool = False) -> list[str]:
    """Clauses by world size with examples judged; then what was not judged, and why."""
    totals = {key: counts for key, counts in tally.totals.items() if counts[0]}
    judged = {name for name, _ in totals}
    sizes = sorted({world for _, world in totals} | set(worlds))
    width = max(map(len, judged), default=10)
    lines = [f"{'clause':<{width}}" + "".join(f"{f'world {size}':>14}" for size in sizes)]
    for name in (name for name in REGISTER if name in judged):
        cells = (_cell(name, strict, *totals.get((name, size), (0, 0, 0, 0))) for size in sizes)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    total = sum(tally.examples.values())
    lines.append(
        f"{'examples':<{width}}" + "".join(f"{tally.examples[size]:>14}" for size in sizes) + f"   {total} in all"
    )
    unjudged = [name for name in REGISTER if name not in judged]
    if unjudged:
        lines.append(f"never judged: {', '.join(unjudged)}")
    for (reason, layer, world), count in sorted(tally.declined.items()):
        lines.append(f"unsupported: {layer} at world size {world}, {count} examples: {reason}")
    lines += [f"not run: {reason}" for reason in not_run]
    lines += [f"intermittent (fails the run): {text}" for text in tally.intermittent]
    return lines


def _cell(name: str, strict: bool, judged: int, broken: int, blamed: int, unsupported: int) -> str:
    lenient = REGISTER[name].level == "SHOULD" and not strict
    told = verdict(lenient, judged, broken, blamed, unsupported)
    cells = {"fail": f"FAIL {blamed}/{judged}", "pass": str(judged), "unsupported": "-", "not run": "-"}
    return cells.get(told, f"{told} {broken}/{judged}")
