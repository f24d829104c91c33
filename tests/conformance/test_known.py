"""The file of known deviations: what it may say, the sentence for each thing that it may not, and what it excuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.known import BadKnownFile, Known
from spec import Case

LINE = "row P=2 batch=1 in=2 out=1 float32 bias seed=0"
ENTRY = f"""
[[deviation]]
clause = "row.backward.bias-grad"
when = {{ layer = "row", bias = true }}
case = "{LINE}"
reason = "the bias lives on rank 0 only"
link = "https://example.org/thread"
"""
FIELDS = "['case', 'clause', 'link', 'reason', 'when']"


def read(tmp_path: Path, text: str) -> Known:
    path = tmp_path / "known.toml"
    path.write_text(text)
    return Known.read(str(path))


def test_an_entry_holds_what_the_file_says(tmp_path: Path) -> None:
    (entry,) = read(tmp_path, ENTRY).deviations
    assert entry.clause == "row.backward.bias-grad"
    assert entry.case == Case.parse(LINE)
    assert entry.reason == "the bias lives on rank 0 only"
    assert entry.when == {"layer": "row", "bias": True}
    assert entry.link == "https://example.org/thread"


def test_a_file_may_be_empty(tmp_path: Path) -> None:
    assert Known() == read(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[[deviation]]\nclause = "ranks.alive"\n',
            f", entry 1: missing ['case', 'reason'], unknown []; an entry has {FIELDS}",
        ),
        (
            ENTRY + 'because = "of that"\n',
            f", entry 1: missing [], unknown ['because']; an entry has {FIELDS}",
        ),
        (
            ENTRY + ENTRY.replace("bias-grad", "bias-gradient"),
            ", entry 2: there is no clause 'row.backward.bias-gradient'; `python -m spec` lists them",
        ),
        (ENTRY.replace("bias = true", "flag = true"), ", entry 1: `when` has ['flag'], which no Case has"),
        (
            ENTRY.replace("in=2", "in=3"),
            ", entry 1: not a case: P=2 must divide in, which has size 3\n"
            f"  {LINE.replace('in=2', 'in=3')}\n  {'^' * len(LINE)}",
        ),
    ],
)
def test_what_a_file_may_not_say_is_named_with_its_entry(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(BadKnownFile) as caught:
        read(tmp_path, text)
    assert f"--known {tmp_path / 'known.toml'}{sentence}" == str(caught.value)


def test_what_is_no_toml_is_named_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(BadKnownFile) as caught:
        read(tmp_path, "[[deviation]")
    assert str(caught.value).startswith(f"--known {tmp_path / 'known.toml'}: ")
    assert "(at line 1, column " in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.toml")
    with pytest.raises(BadKnownFile) as caught:
        Known.read(path)
    assert f"--known {path}: [Errno 2] No such file or directory: '{path}'" == str(caught.value)


def test_a_bad_file_is_a_value_error() -> None:
    assert issubclass(BadKnownFile, ValueError)


@pytest.mark.parametrize(
    ("clause", "line", "expected"),
    [
        ("row.backward.bias-grad", LINE, True),
        ("row.backward.bias-grad", "row P=4 batch=2 in=8 out=3 float64 bias frozen=x seed=9", True),
        ("row.backward.bias-grad", LINE.replace("bias ", ""), False),
        ("row.backward.weight-grad", LINE, False),
        ("row.backward.bias", LINE, False),
        ("column.backward.bias-grad", "column P=2 batch=1 in=2 out=2 float32 bias seed=0", False),
    ],
)
def test_an_entry_excuses_its_clause_in_its_cases_alone(tmp_path: Path, clause: str, line: str, expected: bool) -> None:
    assert expected is read(tmp_path, ENTRY).explains(clause, Case.parse(line))


def test_an_entry_without_when_excuses_its_clause_in_every_case(tmp_path: Path) -> None:
    known = read(tmp_path, ENTRY.replace('when = { layer = "row", bias = true }', ""))
    assert known.explains("row.backward.bias-grad", Case.parse("row P=1 batch=1 in=1 out=1 float64 bias seed=3"))


def test_any_entry_may_excuse(tmp_path: Path) -> None:
    other = ENTRY.replace("row.backward.bias-grad", "row.forward.value")
    known = read(tmp_path, ENTRY + other)
    assert known.explains("row.forward.value", Case.parse(LINE))
    assert known.explains("row.backward.bias-grad", Case.parse(LINE))


def test_no_file_excuses_nothing() -> None:
    assert not Known().explains("row.backward.bias-grad", Case.parse(LINE))
