"""The collectives of a compiled program, read from the HLO that XLA ended up with."""

from __future__ import annotations

import re
from typing import Final

from spec import Collective
from spec.contract import ITEM_BYTES

_KINDS: Final = {
    "all-reduce": "all-reduce",
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "p2p",
    "collective-broadcast": "broadcast",
}
_CALL: Final = re.compile(
    rf"%?(?P<name>[\w.-]+) = (?P<shape>.+?) (?P<kind>{'|'.join(_KINDS)})(?:-start)?\((?P<operands>[^)]*)\)(?P<rest>.*)"
)
_VALUE: Final = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<dtype>\w+)\[(?P<sizes>[\d,]*)\]")
_DTYPES: Final = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def collectives(hlo: str, phase: str, dtype: str) -> tuple[Collective, ...]:
    """The collectives of a program in order, with the bytes that one rank puts in.

    XLA's CPU backend adds up bfloat16 in float32, and names such a reduction promoted. What the program asked for is
    told: `dtype`. Where nothing is moved, as of an empty batch, XLA leaves the collective out.
    """
    values: dict[str, tuple[str, int]] = {}
    found: list[Collective] = []
    for line in hlo.splitlines():
        call = _CALL.search(line)
        if call:
            promoted = re.search(r"to_apply=\S*promoted", call["rest"]) is not None
            found += [
                Collective(_KINDS[call["kind"]], count * ITEM_BYTES.get(kept, 1), kept, phase)
                for operand in call["operands"].split(",")
                for held, count in [values.get(operand.split()[-1].lstrip("%"), ("", 0))]
                for kept in [dtype if promoted else held]
            ]
        value = _VALUE.match(line)
        if value:
            sizes = [int(size) for size in value["sizes"].split(",") if size]
            count = 1
            for size in sizes:
                count *= size
            values[value["name"]] = _DTYPES.get(value["dtype"], value["dtype"]), count
    return tuple(found)
