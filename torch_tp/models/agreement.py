"""What the ranks of a group must agree on before a model is changed, and how all of them leave together.

A rank that raises alone leaves the others waiting in the next collective. So ranks first exchange what went wrong on
each of them, and the digests of what must be the same. Only if these differ, they exchange what the digests are made
of. Ranks send JSON as bytes; nothing from another rank is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_tp import c10d
from torch_tp.errors import RankMismatchError
from torch_tp.group import Group
from torch_tp.internals import FakeTensor, pytree

_ROOM = 2048  # bytes of the first exchange
_CHUNK = 1 << 20  # words that are hashed at a time
_FIRST, _SECOND, _STEP = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Call = tuple[Sequence[Any], Mapping[str, Any]]


def compare_models(
    owner: str,
    model: nn.Module,
    group: Group,
    examples: Sequence[Call] = (),
    *,
    plan: str = "",
    example_values: bool = True,
) -> None:
    """Raise on every rank if the ranks' models, examples or plans differ; to be called on every rank.

    It compares the modules' paths, classes and training modes, and of parameters and buffers names, shapes, dtypes,
    `requires_grad` and values; values by a hash of their bytes, which is computed on their device. Nothing is changed.
    Without a process group, and for P = 1, there is nothing to compare.

    Args:
        examples: the arguments of calls; their structure, shapes and dtypes are compared.
        plan: a text that must be the same on every rank.
        example_values: compare the values of the examples, too.

    Raises:
        RankMismatchError: something differs. The text names the first difference and the ranks; it is the same on all.
    """
    if not group.attached or group.size == 1:
        return
    facts: dict[str, str] = {}
    with together(owner, group):
        facts |= _facts_of_model(model)
        for number, call in enumerate(examples):
            facts |= _facts_of_call(f"example {number}", call, example_values)
        facts["the plan"] = plan
    text = json.dumps(facts)
    digests = exchange(owner, group, f"{len(text.encode())} {hashlib.blake2b(text.encode()).hexdigest()}", _ROOM)
    if len(set(digests)) == 1:
        return
    room = max(int(digest.partition(" ")[0]) for digest in digests)
    rows = [json.loads(row) for row in exchange(owner, group, text, room)]
    raise RankMismatchError(f"{owner}: the models of the ranks differ: {_difference(rows)}")


@contextmanager
def together(owner: str, group: Group) -> Iterator[None]:
    """Ranks that enter this block leave it together: if one of them raises inside, every rank raises.

    A rank raises its own error if it has one, else a RankMismatchError that quotes the first one. There must be no
    collective inside that another rank could wait in. Without a process group this does nothing.
    """
    raised: Exception | None = None
    try:
        yield
    except Exception as error:
        raised = error
    text = "" if raised is None else f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    try:
        texts = exchange(owner, group, text, _ROOM) if group.attached and group.size > 1 else [text]
    except RuntimeError:
        if raised is None:
            raise
    if raised is not None:
        raise raised
    failed = [rank for rank, text in enumerate(texts) if text]
    if failed:
        raise RankMismatchError(f"{owner}: the ranks differ: rank {failed[0]} raised {texts[failed[0]]}")


def exchange(owner: str, group: Group, text: str, room: int) -> list[str]:
    """The texts of all ranks, by one all-gather of `room` bytes; what does not fit is cut off."""
    process_group = group.require(owner, "the ranks exchange what they found")
    data = text.encode()[:room].ljust(room, b"\0")
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(c10d.device_of(process_group))
    everyone = mine.new_empty(group.size * room)
    c10d.all_gather_single(everyone, mine, group=process_group)
    rows = everyone.cpu().view(group.size, room)
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in rows]


# -- facts: texts by what they are about; the word behind the last "|" says which property it is


def _facts_of_model(model: nn.Module) -> dict[str, str]:
    facts = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = f"module {path}" if path else "the model"
        facts[f"{name}|class"] = type(module).__qualname__
        facts[f"{name}|mode"] = "training" if module.training else "evaluation"
    parameters = {f"parameter {name}": each for name, each in model.named_parameters(remove_duplicate=False)}
    buffers = {f"buffer {name}": each for name, each in model.named_buffers(remove_duplicate=False)}
    first: dict[int, str] = {}
    for name, tensor in (parameters | buffers).items():
        if first.setdefault(id(tensor), name) == name:
            facts |= _facts_of_tensor(name, tensor, True)
        else:
            facts[f"{name}|the same as"] = first[id(tensor)]
    return facts


def _facts_of_tensor(name: str, tensor: Tensor, values: bool) -> dict[str, str]:
    facts = {
        f"{name}|shape": str(list(tensor.shape)),
        f"{name}|dtype": str(tensor.dtype).removeprefix("torch."),
        f"{name}|requires_grad": str(tensor.requires_grad),
    }
    return facts | {f"{name}|values": fingerprint(tensor)} if values else facts


def _facts_of_call(name: str, call: Call, values: bool) -> dict[str, str]:
    args, kwargs = call
    facts: dict[str, str] = {}
    for path, leaf in pytree.tree_flatten_with_path((list(args), dict(kwargs)))[0]:
        entry = f"{name}, argument {pytree.keystr(path[1:])}"
        if isinstance(leaf, Tensor):
            facts |= _facts_of_tensor(entry, leaf, values)
        else:
            plain = isinstance(leaf, (int, float, complex, str, bytes, type(None), torch.dtype))
            facts[f"{entry}|value"] = repr(leaf) if plain else type(leaf).__qualname__
    return facts


def fingerprint(tensor: Tensor) -> str:
    """A hash of a tensor's bytes in reading order, computed on its device; empty if it has no bytes to read."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if tensor.is_meta or isinstance(tensor, FakeTensor) or not plain or tensor.numel() == 0:
        return ""
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    length = data.numel()
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for start in range(0, length, 8 * _CHUNK):
        part = data[start : start + 8 * _CHUNK]
        if len(part) % 8 or part.storage_offset() % 8:
            part = torch.cat([part, part.new_zeros(-len(part) % 8)])  # a copy, which is aligned
        total += _hash(part.view(torch.int64), start // 8)
    return f"{int(total) & (2**64 - 1):016x}"


def _hash(words: Tensor, start: int) -> Tensor:
    """The sum of a mixture of each word and its position, modulo 2 ** 64 (S. Vigna's splitmix64)."""
    x = torch.arange(start + 1, start + 1 + len(words), device=words.device).mul_(_signed(_FIRST)).add_(words)
    x.bitwise_xor_(x >> 30).mul_(_signed(_SECOND))
    x.bitwise_xor_(x >> 27).mul_(_signed(_STEP))
    return x.bitwise_xor_(x >> 31).sum()


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _difference(rows: Sequence[Mapping[str, str]]) -> str:
    """The first difference between the ranks' facts, and how many more there are."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    differing = [name for name in names if len({row.get(name) for row in rows}) > 1]
    owner, _, kind = differing[0].rpartition("|")
    others = len({name.rpartition("|")[0] for name in differing}) - 1
    ranks: dict[str | None, list[int]] = {}
    for rank, row in enumerate(rows):
        ranks.setdefault(row.get(differing[0]), []).append(rank)
    if kind == "values":
        groups = " and ".join(_ranks(each) for each in ranks.values())
        text = f"{owner} has different values on {groups}"
    else:
        found = " and ".join(f"{value or 'absent'} on {_ranks(each)}" for value, each in ranks.items())
        text = f"{owner or kind}: {f'{kind} ' if owner else ''}{found}"
    return text + (f"; {others} more parts differ, too" if others else "")


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
