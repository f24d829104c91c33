"""The file of known deviations: what it may say, the sentence for each thing that it may not, and what it excuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faulty import InputGradient

from conformance.adapters.find import OURS
from conformance.known import BadKnownFile, Deviation, Known, default_file
from conformance.known import deviations as room
from conformance.observers import InProcess, Options
from conformance.plugin import options as command_line
from conformance.plugin.collection import not_looked_for
from conformance.reporting.record import KnownReason, Sighting
from conformance.suite import Suite
from conformance.test_conformance import test_known_deviation_is_still_there as still_there
from spec import Case, ContractViolation

ROOT = Path(__file__).parents[2]
LINE = "row P=2 batch=1 in=2 out=1 float32 bias seed=0"
ENTRY = f"""
[[deviation]]
clause = "row.backward.bias-grad"
when = {{ layer = "row", bias = true }}
case = "{LINE}"
reason = "the bias lives on rank 0 only"
link = "https://example.org/thread"
"""
FIELDS = "['case', 'clause', 'link', 'machine', 'reason', 'when']"


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
    assert entry.machine == ""


def test_an_entry_may_say_what_of_the_machine_it_depends_on(tmp_path: Path) -> None:
    (entry,) = read(tmp_path, ENTRY + 'machine = "which kernel is called"\n').deviations
    assert entry.machine == "which kernel is called"


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
        (ENTRY.replace("bias = true", "P = true"), ", entry 1: `when` has P = True; of a Case it is int"),
        (
            ENTRY.replace("bias = true", 'dtype = ["float32", 16]'),
            ", entry 1: `when` has dtype = ['float32', 16]; of a Case it is str",
        ),
        *(
            (
                ENTRY + f"machine = {value}\n",
                f", entry 1: has machine = {shown}; say in words what of the machine it depends on",
            )
            for value, shown in (("true", "True"), ('""', "''"), ('" "', "' '"))
        ),
        (ENTRY.replace("bias = true", "batch = 1"), ", entry 1: `when` has batch = 1; of a Case it is tuple"),
        (ENTRY.replace("bias = true", "dtype = []"), f", entry 1: `when` does not fit its own `case` {LINE}"),
        (ENTRY.replace("bias = true", "P = 4"), f", entry 1: `when` does not fit its own `case` {LINE}"),
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


def test_a_list_means_any_of_its_values(tmp_path: Path) -> None:
    known = read(tmp_path, ENTRY.replace("bias = true", 'dtype = ["float32", "bfloat16"], batch_dims = [0, 1]'))
    assert known.explains("row.backward.bias-grad", Case.parse(LINE))
    assert known.explains("row.backward.bias-grad", Case.parse(LINE.replace("float32", "bfloat16")))
    assert not known.explains("row.backward.bias-grad", Case.parse(LINE.replace("float32", "float16")))
    assert not known.explains("row.backward.bias-grad", Case.parse(LINE.replace("batch=1", "batch=1x1")))


@pytest.mark.parametrize(
    ("batch", "expected"), [("[1]", [True, False, False]), ("[[2, 3], [1]]", [True, True, False]), ("[]", None)]
)
def test_a_batch_is_a_list_itself(tmp_path: Path, batch: str, expected: list[bool] | None) -> None:
    text = ENTRY.replace("bias = true", f"batch = {batch}")
    if expected is None:
        text = text.replace(" batch=1 ", " ")
        assert read(tmp_path, text).explains("row.backward.bias-grad", Case.parse(LINE.replace(" batch=1", "")))
        return
    known = read(tmp_path, text)
    cases = [Case.parse(LINE.replace("batch=1", f"batch={shape}")) for shape in ("1", "2x3", "2")]
    assert [known.explains("row.backward.bias-grad", case) for case in cases] == expected


def test_any_entry_may_excuse(tmp_path: Path) -> None:
    other = ENTRY.replace("row.backward.bias-grad", "row.forward.value")
    known = read(tmp_path, ENTRY + other)
    assert known.explains("row.forward.value", Case.parse(LINE))
    assert known.explains("row.backward.bias-grad", Case.parse(LINE))


def test_no_file_excuses_nothing() -> None:
    assert not Known().explains("row.backward.bias-grad", Case.parse(LINE))


# The files that come with the suite


def test_an_implementation_of_ours_has_its_file_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "__file__", str(tmp_path / "deviations.py"))
    for name in ("numpy", "stranger"):
        (tmp_path / f"{name}.toml").write_text(ENTRY)
    assert default_file("numpy") == str(tmp_path / "numpy.toml")
    assert default_file("torch_tp") == ""
    assert default_file("stranger") == ""
    assert default_file("numpy.toml:Mine") == ""


def test_every_file_that_comes_with_the_suite_can_be_read_and_is_someone_s() -> None:
    for path in Path(room.__file__).parent.glob("*.toml"):
        assert Known.read(str(path)).deviations
        assert path.stem in OURS


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "default.toml"), ("none", ""), ("", ""), ("own.toml", "own.toml")]
)
def test_the_default_file_gives_way(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "default_file", lambda impl: "default.toml")
    for name in ("default.toml", "own.toml"):
        Path(name).write_text(ENTRY)
    assert command_line.known_file(given, "numpy") == expected


# The test of an entry


UNREDUCED = "column P=2 batch=1 in=2 out=2 float32 bias seed=0"


def suite() -> Suite:
    made = Suite(Options(impl="numpy"))
    made.observer = InProcess(InputGradient(lambda terms: terms))
    return made


def test_an_entry_whose_case_breaks_its_clause_passes_but_not_what_it_breaks_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case breaks backward.replicas too, of which nothing is known until a second entry says so."""
    entries = [Deviation(name, Case.parse(UNREDUCED), "not reduced") for name in NAMES]
    one, both = suite(), suite()
    one._known, both._known = Known((entries[0],)), Known(tuple(entries))

    still_there(entries[0], both)
    with pytest.raises(ContractViolation, match=r"backward\.replicas \(MUST\)"):
        still_there(entries[0], one)


NAMES = ("column.backward.input-grad-reduced", "backward.replicas")


def test_an_entry_whose_case_breaks_nothing_fails() -> None:
    entry = Deviation("row.backward.bias-grad", Case.parse(LINE), "divided")
    with pytest.raises(AssertionError, match=r"does not break row\.backward\.bias-grad any more: take the entry out"):
        still_there(entry, suite())


MARK = "which kernel is called"


@pytest.mark.parametrize(("clause", "seen"), [("column.backward.input-grad-reduced", True), ("ranks.alive", False)])
def test_an_entry_that_depends_on_the_machine_passes_either_way_and_says_which(clause: str, seen: bool) -> None:
    examined = suite()
    entry = Deviation(clause, Case.parse(UNREDUCED), "not reduced", link="here", machine=MARK)
    examined._known = Known((entry, *(Deviation(name, Case.parse(UNREDUCED), "not reduced") for name in NAMES)))

    still_there(entry, examined)

    known = KnownReason("not reduced", "here", MARK)
    assert examined.sightings == [Sighting(clause, 2, "column", "", UNREDUCED, known, seen)]


@pytest.mark.parametrize("clause", ["column.backward.input-grad-reduced", "ranks.alive"])
def test_the_mark_excuses_nothing_that_the_case_breaks_besides(clause: str) -> None:
    examined = suite()
    entry = Deviation(clause, Case.parse(UNREDUCED), "not reduced", machine=MARK)
    examined._known = Known((entry,))
    with pytest.raises(ContractViolation, match=r"\(MUST\)"):
        still_there(entry, examined)


def test_the_mark_of_one_entry_makes_no_other_lenient() -> None:
    examined = suite()
    marked = Deviation("row.backward.bias-grad", Case.parse(LINE), "divided", machine=MARK)
    plain = Deviation("row.backward.bias-grad", Case.parse(LINE), "divided")
    examined._known = Known((marked, plain))
    with pytest.raises(AssertionError, match=r"does not break row\.backward\.bias-grad any more: take the entry out"):
        still_there(plain, examined)
    assert examined.sightings == []


def test_an_entry_that_depends_on_the_machine_must_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = suite()
    monkeypatch.setattr(examined.observer.adapter, "declines", lambda case: "has no row")
    with pytest.raises(AssertionError, match=r"seed=0 is declined: has no row"):
        still_there(Deviation("row.backward.bias-grad", Case.parse(LINE), "divided", machine=MARK), examined)


def test_an_entry_whose_case_is_declined_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = suite()
    monkeypatch.setattr(examined.observer.adapter, "declines", lambda case: "has no row")
    with pytest.raises(AssertionError, match=r"seed=0 is declined: has no row"):
        still_there(Deviation("row.backward.bias-grad", Case.parse(LINE), "divided"), examined)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(), ""),
        (Options(world_sizes=(2,)), ""),
        (Options(world_sizes=(1, 4)), "world size 2: not in --world-sizes"),
        (Options(clauses=("row.",)), ""),
        (Options(clauses=("column.",)), "its clause is not judged: --clause"),
    ],
)
def test_an_entry_that_cannot_be_looked_for_is_left_out_with_the_reason(options: Options, expected: str) -> None:
    assert not_looked_for(options, Deviation("row.backward.bias-grad", Case.parse(LINE), "divided")) == expected


def test_every_finding_that_is_linked_is_told_and_every_script_is_linked() -> None:
    text = (ROOT / "docs/findings.md").read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", line[4:].lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("### ")
    }
    links = {
        entry.link for file in (ROOT / "conformance/known").glob("*.toml") for entry in Known.read(str(file)).deviations
    }
    scripts = sorted((ROOT / "docs/findings").glob("*.py"))
    for script in scripts:
        compile(script.read_text(), str(script), "exec")

    assert {link.partition("#")[2] for link in links if link.startswith("docs/findings.md#")} <= headings
    assert [script.name for script in scripts if f"](findings/{script.name})" not in text] == []
    assert scripts
