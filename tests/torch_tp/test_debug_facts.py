"""What TP_DEBUG=check compares, without any rank: packing, reading back, and saying what differs."""

from __future__ import annotations

import pytest
import torch

from torch_tp import debug


def test_facts_survive_the_packing() -> None:
    facts = {"operation": "row forward", "shape": [3, 4], "dim": -1}

    assert debug._unpack(debug._pack(facts)) == {"operation": "row forward", "shape": "[3, 4]", "dim": "-1"}


def test_facts_too_long_to_pack_still_differ() -> None:
    rows = [debug._unpack(debug._pack({"shape": [*range(400), last]})) for last in (1, 2)]

    assert "checksum of all facts" in debug.disagreement(rows)


def test_packed_facts_have_one_length() -> None:
    assert {debug._pack({"a": "b" * n}).shape for n in (0, 1, 500, 5000)} == {(debug._WORDS,)}


def test_agreement_is_the_empty_reason() -> None:
    assert debug.disagreement([{"dtype": "float32"}] * 3) == ""


def test_ranks_are_grouped_by_value() -> None:
    rows = [{"dtype": "float32"}, {"dtype": "float64"}, {"dtype": "float32"}, {}]

    assert debug.disagreement(rows) == "dtype is float32 on ranks 0, 2, float64 on rank 1, absent on rank 3"


def test_fingerprints_know_values_order_and_bits() -> None:
    x = torch.arange(6.0).view(2, 3)

    assert debug.fingerprint(x) == debug.fingerprint(x.t().contiguous().t())
    different = [x, x.flip(0), x + 1, x.double(), -x, torch.zeros(3), torch.zeros(4), torch.zeros(0), x.bfloat16()]
    assert len({debug.fingerprint(one) for one in different}) == len(different)


def test_fingerprints_tell_apart_what_sums_alike() -> None:
    one, other = torch.tensor([-3.0, -3.0, 3.0, -2.0]), torch.tensor([-3.0, -2.0, -3.0, 3.0])

    assert debug.fingerprint(one) != debug.fingerprint(other)


def test_a_fingerprint_reads_a_conjugate_as_it_is() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j])

    assert debug.fingerprint(x.conj().resolve_conj()) == debug.fingerprint(x.conj())


MODES = [(None, False), ("", False), ("0", False), ("1", False), ("check", True), ("1,check", True)]


@pytest.mark.parametrize(("value", "on"), MODES)
def test_the_variable(value: str | None, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TP_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("TP_DEBUG", value)

    assert debug.checking() is on


def test_an_unknown_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TP_DEBUG", "yes")

    with pytest.raises(ValueError, match=r"^TP_DEBUG = 'yes'; it must be 1, check, '1,check', 0 or unset$"):
        debug.checking()


def test_the_variable_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TP_DEBUG", raising=False)
    assert not debug.checking()
    monkeypatch.setenv("TP_DEBUG", "check")

    assert not debug.checking()
