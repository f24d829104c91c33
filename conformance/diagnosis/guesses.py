"""Known mistakes, each with the numbers that it would give every rank.

A guess fits where its numbers are, on every rank that is wrong and in every element, the numbers that were seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from conformance.diagnosis import sentences as say
from conformance.diagnosis.parts import of_parts
from conformance.diagnosis.tensors import Tensor
from spec.placements import Floats, bounds


@dataclass(frozen=True)
class Guess:
    """A sentence, and by rank what it predicts; None where it predicts nothing."""

    text: str
    numbers: tuple[Floats | None, ...]


def fitting(tensor: Tensor) -> list[str]:
    """The sentences that fit a tensor, the likeliest first."""
    wrong, P = tensor.wrong, len(tensor.got)
    if not wrong:
        return []
    absent = [r for r in wrong if tensor.got[r] is None]
    if absent:
        where = "every rank" if len(absent) == P else ranks(absent)
        if tensor.name.startswith("gradient"):
            return [say.NO_GRADIENT.format(ranks=where)]
        held = [r for r in range(P) if r not in absent]
        return [say.HELD_BY_SOME.format(ranks=ranks(held))] if held and tensor.name != "output" else []
    found = [guess.text for guess in guesses(tensor) if all(_same(tensor.got[r], guess.numbers[r]) for r in wrong)]
    if _only_own_slice(tensor):
        found.insert(0, say.OWN_SLICE_ONLY)
    return list(dict.fromkeys(found))


def ranks(numbers: Sequence[int]) -> str:
    """Some ranks in words."""
    names = [str(number) for number in numbers]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"


def guesses(tensor: Tensor) -> Iterator[Guess]:
    """Every guess that makes sense for a tensor, the likeliest first."""
    P = len(tensor.expected)
    if tensor.bias:
        yield from _biased(tensor, P)
    if tensor.terms:
        yield from _summed(tensor, P)
    if tensor.layout is not None and P > 1:
        joined = tensor.whole is not None and not tensor.sliced
        yield from (Guess(text, numbers) for text, numbers in of_parts(tensor.layout, P, joined))
    if tensor.whole is not None and P > 1:
        yield from _sliced(tensor, tensor.whole, P) if tensor.sliced else _joined(tensor, tensor.whole, P)
    yield from _kept(tensor, P)
    yield from _scaled(tensor.expected, P)
    yield Guess(say.TRANSPOSED, tuple(e.T if e.ndim == 2 else None for e in tensor.expected))
    yield Guess(say.OTHER_SHAPE, tuple(_reshaped(g, e) for g, e in zip(tensor.got, tensor.expected, strict=True)))


def _same(got: Floats | None, guess: Floats | None) -> bool:
    return got is not None and guess is not None and got.shape == guess.shape and np.array_equal(got, guess)


def _reshaped(got: Floats | None, expected: Floats) -> Floats | None:
    """The right numbers in the shape that was seen, where that is another one."""
    if got is None or got.shape == expected.shape or got.size != expected.size:
        return None
    return expected.reshape(got.shape)


def _biased(tensor: Tensor, P: int) -> Iterator[Guess]:
    """What can happen to the bias of an output whose product is right."""
    plain = [e - b for e, b in zip(tensor.expected, tensor.bias, strict=True)]

    def counted(text: str, times: float) -> Guess:
        return Guess(text, tuple(p + times * b for p, b in zip(plain, tensor.bias, strict=True)))

    for times in dict.fromkeys((P, *range(2, P), P * P)):
        # With two ranks, twice and P times are the same.
        yield counted(say.BIAS_TIMES.format(k="P" if times == P > 2 else times), times)
    without = [r for r in tensor.wrong if _same(tensor.got[r], plain[r])]
    right = [r for r in range(P) if r not in tensor.wrong]
    if right and without == tensor.wrong:
        yield counted(say.BIAS_SOME_RANKS.format(ranks=ranks(right)), 0)
    yield counted(say.BIAS_NEVER, 0)
    yield counted(say.BIAS_DIVIDED, 1 / P)
    for order in (*((r,) * P for r in range(P)), *_orders(P)):
        pairs = zip(plain, (tensor.bias[s] for s in order), strict=True)
        yield Guess(say.BIAS_OTHER_SLICE, tuple(p + b if p.shape == b.shape else None for p, b in pairs))


def _summed(tensor: Tensor, P: int) -> Iterator[Guess]:
    """Ways to add up the ranks' terms that are not the sum, with the bias counted once or along with them."""
    terms, total = np.stack(tensor.terms), np.sum(tensor.terms, axis=0)
    bias = tensor.bias or tuple(np.zeros_like(e) for e in tensor.expected)

    def counted(text: str, counts: Iterable[Sequence[float]], biases: float = 1) -> Guess:
        rows = [np.tensordot(np.asarray(row, float), terms, 1) for row in counts]
        return Guess(text, tuple(row + biases * b for row, b in zip(rows, bias, strict=True)))

    every, own = np.ones((P, P)), np.eye(P)
    right = [r for r in range(P) if r not in tensor.wrong]
    if right:
        yield counted(say.REDUCED_ON_SOME.format(ranks=ranks(right)), own)
        yield counted(say.REDUCED_ON_SOME.format(ranks=ranks(right)), 0 * own)
    yield counted(say.NOT_REDUCED, own)
    for size in (n for n in range(2, P) if P % n == 0):
        yield counted(say.REDUCED_AMONG, np.kron(np.eye(P // size), np.ones((size, size))))
    for biases in (1, P):
        yield counted(say.REDUCED_TWICE, P * every, biases)
    for biases in (1, 1 / P):
        yield counted(say.AVERAGED, every / P, biases)
    yield counted(say.TERM_MISSING.format(ranks="the rank itself"), every - own)
    yield counted(say.TERM_TWICE.format(ranks="the rank itself"), every + own)
    for r in range(P):
        one = np.tile(own[r], (P, 1))
        yield counted(say.TERM_MISSING.format(ranks=ranks([r])), every - one)
        yield counted(say.TERM_TWICE.format(ranks=ranks([r])), every + one)
    for r in range(P):
        others = [s for s in range(P) if s != r]
        yield counted(say.TERM_MISSING.format(ranks=ranks(others)), np.tile(own[r], (P, 1)))
    yield counted(say.NEGATED, -every, -1)
    digits = _digits(tensor, total)
    if digits is not None:
        yield counted(say.TERMS_COUNTED.format(digits=" ".join(f"{d:g}" for d in digits)), np.tile(digits, (P, 1)))


def _digits(tensor: Tensor, total: Floats) -> Floats | None:
    """How often each rank's term is in what all ranks hold alike; None if that cannot be told."""
    got = tensor.got[0]
    if got is None or got.shape != total.shape or not np.isfinite(got).all():
        return None
    terms = np.stack([term.ravel() for term in tensor.terms], axis=1)
    if len(terms) < terms.shape[1] + 2 or np.linalg.matrix_rank(terms) < terms.shape[1]:
        return None
    target = (got - (tensor.bias[0] if tensor.bias else 0)).ravel()
    counts = np.round(np.linalg.lstsq(terms, target)[0] * 16) / 16
    return counts if np.array_equal(terms @ counts, target) else None


def _sliced(tensor: Tensor, whole: Floats, P: int) -> Iterator[Guess]:
    """Other slices than the rank's own."""
    dim, size = tensor.dim, whole.shape[tensor.dim]
    width = size // P
    for r in range(P):
        everywhere = tensor.wrong == [s for s in range(P) if s != r]
        text = say.RANK_ZEROS if everywhere else say.OTHER_SLICE
        yield Guess(text.format(rank=ranks([r])), (tensor.expected[r],) * P)
    for order in _orders(P):
        yield Guess(_order_in_words(order), tuple(tensor.expected[s] for s in order))
    yield Guess(say.STRIDED, tuple(np.take(whole, range(r, size, P), dim) for r in range(P)))
    for by in (1, -1):
        rolled = np.roll(whole, -by, dim)
        yield Guess(say.OFF_BY_ONE, tuple(np.take(rolled, range(r * width, (r + 1) * width), dim) for r in range(P)))
    for other in range(whole.ndim):
        if other != dim and whole.shape[other] % P == 0:
            parts = np.split(whole, P, other)
            yield Guess(say.OTHER_DIMENSION, tuple(parts))
            yield Guess(say.OTHER_DIMENSION, tuple(_viewed(part, tensor.expected[0].shape) for part in parts))
    yield Guess(say.WHOLE, (whole,) * P)
    if whole.ndim == 2 and whole.shape[0] == whole.shape[1]:
        yield Guess(say.TRANSPOSED, tuple(np.split(whole.T, P, dim)))


def _joined(tensor: Tensor, whole: Floats, P: int) -> Iterator[Guess]:
    """Slices joined in another way."""
    size = whole.shape[tensor.dim]
    parts = [whole[(slice(None),) * tensor.dim + (bounds(size, P, r),)] for r in range(P)]
    for order in _orders(P):
        yield Guess(_order_in_words(order), (np.concatenate([parts[s] for s in order], tensor.dim),) * P)
    yield Guess(say.NOT_JOINED, tuple(parts))
    interleaved = np.stack(parts, tensor.dim + 1).reshape(whole.shape)
    yield Guess(say.INTERLEAVED, (interleaved,) * P)
    for other in range(whole.ndim):
        if other != tensor.dim:
            joined = np.concatenate(parts, other)
            yield Guess(say.JOINED_ALONG, (joined,) * P)
            yield Guess(say.JOINED_ALONG, (_viewed(joined, whole.shape),) * P)


def _viewed(value: Floats, shape: tuple[int, ...]) -> Floats:
    return value.reshape(shape)


def _only_own_slice(tensor: Tensor) -> bool:
    """Whether every rank has its own slice right in what should be all of them joined, and no other."""
    whole, P = tensor.whole, len(tensor.got)
    if whole is None or tensor.sliced or P == 1 or tensor.wrong != list(range(P)):
        return False
    for r, got in enumerate(tensor.got):
        if got is None or got.shape != whole.shape:
            return False
        for s in range(P):
            cut = (slice(None),) * tensor.dim + (bounds(whole.shape[tensor.dim], P, s),)
            if np.array_equal(got[cut], whole[cut]) != (r == s):
                return False
    return True


def _kept(tensor: Tensor, P: int) -> Iterator[Guess]:
    """What each rank should keep for itself, added up over the ranks."""
    different = any(not _same(tensor.expected[0], e) for e in tensor.expected[1:])
    if different and not tensor.terms and len({e.shape for e in tensor.expected}) == 1:
        total = np.sum(tensor.expected, axis=0)
        yield Guess(say.SUMMED, (total,) * P)
        yield Guess(say.MEAN, (total / P,) * P)


def _scaled(expected: Sequence[Floats], P: int) -> Iterator[Guess]:
    factors = {P: say.P_TIMES, 1 / P: say.DIVIDED, 2: say.TWICE, 0: say.ZERO, -1: say.NEGATED}
    for factor in (P * P, 1 / (P * P), 3, 0.5):
        factors.setdefault(factor, say.SCALED.format(factor=f"{factor:g}"))
    for factor, text in factors.items():
        if factor != 1:
            yield Guess(text, tuple(factor * e for e in expected))


def _orders(P: int) -> Iterator[tuple[int, ...]]:
    """Every order of the ranks but the right one, the likeliest first."""
    if P > 1:
        yield tuple(range(P))[::-1]
        yield (*range(1, P), 0)
        yield (P - 1, *range(P - 1))
    own = tuple(range(P))
    yield from (order for order in permutations(own) if order != own)


def _order_in_words(order: tuple[int, ...]) -> str:
    P = len(order)
    if order == tuple(range(P))[::-1]:
        return say.REVERSED
    if order in ((*range(1, P), 0), (P - 1, *range(P - 1))):
        return say.SHIFTED
    return say.PERMUTED.format(order=" ".join(map(str, order)))
