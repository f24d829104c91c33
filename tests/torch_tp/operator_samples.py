"""Calls of operators on real tensors, drawn by Hypothesis: for every row of the table, a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.torch_tp.operator_shards import Rank, Sample

aten = torch.ops.aten
SIZES = (4, 8, 4, 2, 1)


class Source:
    """Where the sizes and the numbers of a sample come from."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def pick(self, *options: Any) -> Any:
        """One of some options."""
        return self.draw(st.sampled_from(options))

    def draw_int(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        return self.draw(st.integers(low, high))

    def shape(self, least: int = 1, most: int = 3, sizes: Sequence[int] = SIZES) -> list[int]:
        """Sizes of dimensions."""
        return self.draw(st.lists(st.sampled_from(sizes), min_size=least, max_size=most))

    def size(self) -> int:
        """The size of one dimension."""
        return self.pick(*SIZES)

    def dim(self, shape: Sequence[int], extra: int = 0) -> int:
        """A dimension, from the front or from the back."""
        count = len(shape) + extra
        return self.draw(st.integers(-count, count - 1))

    def tensor(self, *shape: int) -> Tensor:
        """Whole numbers, of which sums and products are exact."""
        return torch.randint(-4, 5, shape, generator=self.generator).double()

    def whole(self, least: int = 1, most: int = 3) -> Tensor:
        """Whole numbers in some shape."""
        return self.tensor(*self.shape(least, most))

    def distinct(self, shape: Sequence[int]) -> Tensor:
        """Numbers of which no two are equal."""
        count = math.prod(shape)
        return torch.randperm(count, generator=self.generator).double().view(*shape) - count // 2

    def broadcast(self, shape: Sequence[int]) -> Tensor:
        """Numbers in a shape that can be broadcast to another."""
        own = [self.pick(size, size, 1) for size in shape]
        return self.tensor(*own[self.draw(st.integers(0, len(own))) :])

    def index(self, high: int, *shape: int) -> Tensor:
        """Indices below a bound."""
        return torch.randint(0, high, shape, generator=self.generator)

    def below(self, high: int, shape: Sequence[int], dim: int) -> Tensor:
        """Indices of which no two are equal along a dimension, whose size is at most the bound."""
        order = torch.rand([*shape[:dim], high, *shape[dim + 1 :]], generator=self.generator).argsort(dim)
        return order.narrow(dim, 0, shape[dim])


Generator = Callable[[Source, str], Sample]
SAMPLES: dict[str, list[Generator]] = {}


def of(names: str) -> Callable[[Generator], Generator]:
    """These operators have samples from a generator."""

    def noted(generator: Generator) -> Generator:
        for name in names.split():
            SAMPLES.setdefault(name, []).append(generator)
        return generator

    return noted


def default(name: str) -> Any:
    """The overload that an operator has, or its first one."""
    packet = getattr(aten, name)
    return getattr(packet, packet.overloads()[0])


def shaped(position: int) -> Callable[[list[Any], Rank], None]:
    """A rank's code names the shape of its own result."""

    def local(args: list[Any], rank: Rank) -> None:
        args[position] = list(rank.results[0])

    return local


@of("clone _to_copy alias contiguous lift_fresh detach neg neg_ zeros_like ones_like bernoulli_")
def _plain(s: Source, name: str) -> Sample:
    kwargs = {"_to_copy": {"dtype": torch.float64}}.get(name, {})
    more = (1.0,) if name == "bernoulli_" else ()
    func = aten.bernoulli_.float if name == "bernoulli_" else default(name)
    return Sample(func, (s.whole(), *more), kwargs)


@of("conj_physical _conj resolve_conj")
def _conjugate(s: Source, name: str) -> Sample:
    shape = s.shape()
    return Sample(default(name), (torch.complex(s.tensor(*shape), s.tensor(*shape)),))


@of("empty_like rand_like randn_like uniform_ normal_ exponential_")
def _random(s: Source, name: str) -> Sample:
    return Sample(default(name), (s.whole(),), shapes=True)


@of("full_like")
def _full(s: Source, name: str) -> Sample:
    return Sample(default(name), (s.whole(), 2.0))


@of("native_dropout _fused_dropout")
def _dropout(s: Source, name: str) -> Sample:
    if name == "_fused_dropout":
        return Sample(aten._fused_dropout.default, (s.whole(), 0.5), shapes=True)
    return Sample(aten.native_dropout.default, (s.whole(), s.pick(0.0, 1.0, 0.5), False))


@of("new_empty new_zeros new_ones new_full new_empty_strided")
def _new(s: Source, name: str) -> Sample:
    shape = s.shape()
    more = {"new_full": (2.0,), "new_empty_strided": ([1] * len(shape),)}.get(name, ())
    return Sample(default(name), (s.whole(), shape, *more), shapes="empty" in name)


@of("zeros ones full empty rand randn arange")
def _made(s: Source, name: str) -> Sample:
    more = {"full": (2.0,)}.get(name, ())
    func = getattr(aten, name)
    return Sample(getattr(func, "default", None) or func.memory_format, (4 if name == "arange" else [4, 8], *more))


def _factored(s: Source, count: int) -> list[int]:
    """A shape of so many entries."""
    sizes: list[int] = []
    while count > 1 and len(sizes) < 3:
        size = s.pick(*(k for k in (2, 4, 8, 1, 3) if count % k == 0))
        sizes.append(size)
        count //= size
    return [*sizes, count] if count > 1 or not sizes else sizes


@of("view _unsafe_view reshape")
def _view(s: Source, name: str) -> Sample:
    x = s.tensor(*s.shape(1, 4, (4, 8, 2, 1, 3)))
    return Sample(default(name), (x, _factored(s, x.numel())), local=shaped(1))


@of("squeeze squeeze_")
def _squeeze(s: Source, name: str) -> Sample:
    x = s.whole()
    func, more = s.pick(("default", ()), ("dim", (s.dim(x.shape),)), ("dims", ([s.dim(x.shape)],)))
    return Sample(getattr(getattr(aten, name), func), (x, *more))


@of("expand")
def _expand(s: Source, name: str) -> Sample:
    x = s.whole()
    shape = [*s.shape(0, 1), *(s.pick(4, 8) if size == 1 else size for size in x.shape)]
    return Sample(aten.expand.default, (x, shape), local=shaped(1))


def _repeated(args: list[Any], rank: Rank) -> None:
    more = len(args[1]) - args[0].dim()
    own = [1] * more + list(args[0].shape)
    args[1] = [size // each for size, each in zip(rank.results[0], own, strict=True)]


@of("repeat")
def _repeat(s: Source, name: str) -> Sample:
    x = s.whole()
    times = [s.pick(1, 2, 4) for _ in range(x.dim() + s.pick(0, 1))]
    return Sample(aten.repeat.default, (x, times), local=_repeated)


@of("t")
def _t(s: Source, name: str) -> Sample:
    return Sample(aten.t.default, (s.whole(1, 2),))


@of("transpose transpose_")
def _transpose(s: Source, name: str) -> Sample:
    x = s.whole(1, 4)
    return Sample(
        getattr(aten, name).default if name == "transpose_" else aten.transpose.int,
        (x, *(s.dim(x.shape), s.dim(x.shape))),
    )


@of("permute")
def _permute(s: Source, name: str) -> Sample:
    x = s.whole(1, 4)
    order = s.draw(st.permutations(range(x.dim())))
    return Sample(aten.permute.default, (x, [k - x.dim() * s.pick(0, 1) for k in order]))


@of("unsqueeze unsqueeze_")
def _unsqueeze(s: Source, name: str) -> Sample:
    x = s.whole()
    return Sample(default(name), (x, s.dim(x.shape, 1)))


def _bounds(size: int) -> Callable[[list[Any], Rank], None]:
    """A rank's code says where a slice of its own entries begins and ends, of a dimension of so many."""

    def local(args: list[Any], rank: Rank) -> None:
        dim = args[1] % args[0].dim()
        start, stop = (k + size if k < 0 else min(k, size) for k in args[2:4])
        if args[4] == 1:
            args[2:4] = [rank.within(dim, start), rank.within(dim, stop)]
        elif dim in rank.held:
            args[3] = args[0].shape[dim]

    return local


@of("slice")
def _slice(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.dim(x.shape)
    size = x.shape[dim]
    start = s.draw(st.integers(0, size - 1)) if s.pick(False, True) else s.pick(0, size // 2)
    stop = max(start, s.pick(size, size // 2, 2**63 - 1))
    return Sample(aten.slice.Tensor, (x, dim, start - s.pick(0, 0, size), stop, s.pick(1, 1, 2)), local=_bounds(size))


@of("select unbind")
def _select(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.dim(x.shape)
    return Sample(aten.unbind.int, (x, dim)) if name == "unbind" else Sample(aten.select.int, (x, dim, s.pick(0, -1)))


def _pieces(args: list[Any], rank: Rank) -> Any:
    args[1] = [shape[args[2]] for shape in rank.results]
    return aten.split_with_sizes.default


@of("split split_with_sizes")
def _split(s: Source, name: str) -> Sample:
    x = s.whole()
    dim = s.dim(x.shape)
    size = x.shape[dim]
    if name == "split":
        return Sample(aten.split.Tensor, (x, max(1, s.pick(size // 2, size // 4, size)), dim), local=_pieces)
    sizes = s.pick([size // 2, size - size // 2], [size], [size // 2, size // 4, size - size // 2 - size // 4])
    return Sample(aten.split_with_sizes.default, (x, sizes, dim), local=_pieces)


@of("cat stack")
def _joined(s: Source, name: str) -> Sample:
    shape = s.shape()
    dim = s.dim(shape, int(name == "stack"))
    parts = [s.tensor(*shape) for _ in range(s.pick(1, 2, 3))]
    if name == "cat" and len(shape) > 1:
        parts += s.pick([], [torch.zeros(0, dtype=torch.float64)])
    return Sample(default(name), (parts, dim))


@of("constant_pad_nd")
def _pad(s: Source, name: str) -> Sample:
    x = s.whole()
    pads = [s.pick(0, 0, 1, 2) for _ in range(2 * s.draw(st.integers(1, x.dim())))]
    return Sample(aten.constant_pad_nd.default, (x, pads, 1.0))


@of("view_as_complex view_as_real")
def _complex(s: Source, name: str) -> Sample:
    shape = s.shape()
    if name == "view_as_complex":
        return Sample(aten.view_as_complex.default, (s.tensor(*shape, 2),))
    return Sample(aten.view_as_real.default, (torch.complex(s.tensor(*shape), s.tensor(*shape)),))


@of("add add_ sub sub_ mul mul_ div div_ copy_")
def _arithmetic(s: Source, name: str) -> Sample:
    x = s.whole(0)
    y = s.broadcast(x.shape)
    if name.startswith("div"):
        y = y.abs() + 1
    kwargs = {"alpha": 2} if name[:3] in ("add", "sub") and s.pick(False, True) else {}
    if not name.endswith("_") and s.pick(False, True):
        x, y = (y, x) if not name.startswith("div") else (y, x.abs() + 1)
    kind = "default" if name == "copy_" else "Tensor"
    return Sample(getattr(getattr(aten, name), kind), (x, y), kwargs)


@of("add sub mul div div_")
def _scaled(s: Source, name: str) -> Sample:
    if name.startswith("div"):
        x = s.whole()
        mode = s.pick("floor", "trunc", None)
        return Sample(getattr(aten, name).Tensor_mode, (x, s.broadcast(x.shape).abs() + 1), {"rounding_mode": mode})
    return Sample(getattr(aten, name).Scalar, (s.whole(), 3))


@of("polar complex")
def _pairs(s: Source, name: str) -> Sample:
    x = s.whole()
    return Sample(default(name), (x, s.broadcast(x.shape)))


@of("_prelu_kernel")
def _prelu(s: Source, name: str) -> Sample:
    x = s.whole(2)
    weight = s.tensor(*(size if k == 1 else 1 for k, size in enumerate(x.shape)))
    return Sample(aten._prelu_kernel.default, (x, weight))


@of("where")
def _where(s: Source, name: str) -> Sample:
    x = s.whole()
    return Sample(aten.where.self, (s.broadcast(x.shape) > 0, x, s.broadcast(x.shape)))


@of("triu tril triu_ tril_")
def _triangle(s: Source, name: str) -> Sample:
    return Sample(default(name), (s.whole(2, 4), s.pick(0, 1, -1)))
