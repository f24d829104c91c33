"""python -m spec, as a user meets it: what it prints, what it says of bad requests, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest

from spec import __main__ as command
from spec.document import document
from spec.register import REGISTER

ROOT = Path(__file__).resolve().parents[2]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = command.main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_without_arguments_there_is_help_with_examples(capsys: pytest.CaptureFixture[str]):
    status, out, err = ask(capsys)
    assert (status, err) == (0, "")
    assert out == command.HELP
    assert out.startswith("The contract of tensor-parallel layers.\n\n  python -m spec list ")
    assert ask(capsys, "--help") == (0, out, "")


def test_the_examples_of_the_help_work(capsys: pytest.CaptureFixture[str]):
    lines = command.HELP.split("for example\n")[1].split("\n")
    examples = [line.split("python -m spec ")[1] for line in lines if "python -m spec" in line]
    assert len(examples) == 3
    for text in examples:
        name, _, rest = text.partition(" ")
        assert ask(capsys, name, rest.strip('"'))[0] == 0


def test_list_has_one_line_per_clause(capsys: pytest.CaptureFixture[str]):
    status, out, _ = ask(capsys, "list")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(REGISTER)
    assert lines[0].split(None, 2) == ["ranks.no-exception", "MUST", "No rank raises"]
    assert lines[9].split(None, 2) == ["refuse.text", "SHOULD", "A refusal says what was wrong"]
    assert len({line.index(entry.level) for line, entry in zip(lines, REGISTER.values(), strict=True)}) == 1


def test_explain_shows_one_clause(capsys: pytest.CaptureFixture[str]):
    assert (
        ask(capsys, "explain", "refuse.type")[1]
        == """\
refuse.type  (SHOULD)
A refusal has a type that can be caught

A refusal is a built-in type or a subclass: ValueError for sizes and flags, TypeError for dtypes.

could fail at  layer column, row, merged, qkv, gather, scatter; P any
procedures     refuse
for example    column P=2 batch=3 in=4 out=2 float32 bias procedure=refuse fault=indivisible seed=7
"""
    )


def test_explain_says_where_a_clause_can_fail(capsys: pytest.CaptureFixture[str]):
    assert "\ncould fail at  layer column, row, merged, qkv; P = 1\n" in ask(capsys, "explain", "one-rank.bits")[1]
    assert "\ncould fail at  layer any; P > 1\n" in ask(capsys, "explain", "collectives.group")[1]
    assert "\nprocedures     any\n" in ask(capsys, "explain", "ranks.alive")[1]


@pytest.mark.parametrize("name", REGISTER)
def test_explain_knows_every_clause(name: str, capsys: pytest.CaptureFixture[str]):
    status, out, _ = ask(capsys, "explain", name)
    assert status == 0
    assert out.startswith(f"{name}  ({REGISTER[name].level})\n{REGISTER[name].title}\n\n")
    assert "no small case" not in out
    assert max(map(len, out.splitlines())) <= 110


ROW = """\
row P=2 batch=1 in=4 out=2 float32 bias values=small seed=7

whole tensors, and how the ranks hold them
  X                  [1, 4]  S(-1)  [[ 1, -2, -1,  3]]
  W                  [2, 4]  S(1)   [[ 1,  2,  3,  2],
                                     [ 3, -2, -3, -1]]
  b                  [2]     R      [-2, -1]
  G                  [1, 2]  R      [[ 3, -2]]
rank 0 holds and computes
  X_0                [1, 2]         [[ 1, -2]]
  W_0                [2, 2]         [[ 1,  2],
                                     [ 3, -2]]
  b                  [2]            [-2, -1]
  T_0 = X_0 W_0^T    [1, 2]         [[-3,  7]]
rank 1 holds and computes
  X_1                [1, 2]         [[-1,  3]]
  W_1                [2, 2]         [[ 3,  2],
                                     [-3, -1]]
  b                  [2]            [-2, -1]
  T_1 = X_1 W_1^T    [1, 2]         [[3, 0]]
output, the sum, whole on every rank
  Y = T_0 + T_1 + b  [1, 2]  R      [[-2,  6]]

rank 0, backward
  dX_0 = G W_0               [1, 2]         [[-3, 10]]
  dW_0 = G^T X_0             [2, 2]         [[ 3, -6],
                                             [-2,  4]]
  db = sum of the rows of G  [2]            [ 3, -2]
rank 1, backward
  dX_1 = G W_1               [1, 2]         [[15,  8]]
  dW_1 = G^T X_1             [2, 2]         [[-3,  9],
                                             [ 2, -6]]
  db = sum of the rows of G  [2]            [ 3, -2]
gradient of the input, left sharded, rank r keeps dX_r
  dX = dX_0 | dX_1           [1, 4]  S(-1)  [[-3, 10, 15,  8]]

collectives, with the bytes that each rank puts in
  forward   all-reduce 8 B
  backward  none

reference: the same output and gradients from one device, unsharded
"""


def test_trace_in_small_numbers(capsys: pytest.CaptureFixture[str]):
    assert ask(capsys, "trace", "row P=2 batch=1 in=4 out=2 float32 bias values=small seed=7") == (0, ROW, "")


def test_trace_takes_the_line_without_quotes_too(capsys: pytest.CaptureFixture[str]):
    assert ask(capsys, "trace", "gather", "P=2", "batch=2", "in=2", "dim=0", "values=small") == (0, GATHER, "")


GATHER = """\
gather P=2 batch=2 in=2 float32 dim=0 values=small seed=0

whole tensors, and how the ranks hold them
  X                [2, 2]  S(0)  [[ 3,  2],
                                  [ 3, -2]]
  G                [2, 2]  R     [[ 3,  2],
                                  [ 2, -3]]
rank 0
  X_0              [1, 2]        [[3, 2]]
  Y_0, its output  [2, 2]        [[ 3,  2],
                                  [ 3, -2]]
rank 1
  X_1              [1, 2]        [[ 3, -2]]
  Y_1, its output  [2, 2]        [[ 3,  2],
                                  [ 3, -2]]

rank 0, backward
  G_0                              [2, 2]    [[ 3,  2],
                                              [ 2, -3]]
  dX_0, its gradient of the input  [1, 2]    [[3, 2]]
rank 1, backward
  G_1                              [2, 2]    [[ 3,  2],
                                              [ 2, -3]]
  dX_1, its gradient of the input  [1, 2]    [[ 2, -3]]

collectives, with the bytes that each rank puts in
  forward   all-gather 8 B
  backward  none

reference: the same output and gradients from one device, unsharded
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lst"], "there is no command 'lst' among list, explain, trace, document, did you mean list?"),
        (["list", "x"], "list takes no arguments, not 'x'"),
        (["explain"], "explain takes the name of one clause, for example row.forward.bias-once"),
        (
            ["explain", "row.forward.bias-onc"],
            "there is no clause 'row.forward.bias-onc', did you mean row.forward.bias-once or "
            "qkv.forward.bias-once or merged.forward.bias-once?",
        ),
        (["explain", "zz"], "there is no clause 'zz'; python -m spec list shows all"),
        (["document", "--chek"], "document takes --check or --write, not '--chek'"),
        (["trace"], "a case line is empty; write for example: row P=2 batch=3 in=4 out=2 float32 bias seed=7"),
        (["trace", "row P=3 in=4 out=2"], "not a case: P=3 must divide in, which has size 4\n  row P=3 in=4 out=2"),
        (
            ["trace", "row P=2 in=4 out=2 procedure=init"],
            "no trace of this case: procedure=init computes no values to trace; procedure=run does",
        ),
    ],
)
def test_a_bad_request_is_a_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    status, out, err = ask(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(sentence + "\n")


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("rwo P=2 in=4 out=2", "row"),
        ("row P=2 in=4 out=2 bais", "bias"),
        ("row P=2 in=4 out=2 sed=3", "seed or heads"),
        ("row P=2 in=4 out=2 procedure=twise", "twice"),
        ("row P=2 in=4 out=2 values=smal", "small or subnormal"),
    ],
)
def test_a_misspelt_case_names_the_nearest_word(line: str, near: str, capsys: pytest.CaptureFixture[str]):
    status, out, err = ask(capsys, "trace", line)
    assert (status, out) == (2, "")
    assert err.startswith("not a case: ")
    assert f"\n  {line}\n" in err
    assert err.endswith(f"\ndid you mean {near}?\n")


def test_document_prints_checks_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "SPEC.md"
    monkeypatch.setattr(command, "SPEC", path)
    assert ask(capsys, "document") == (0, document(), "")
    assert ask(capsys, "document", "--check") == (1, "", f"there is no {path}; --write makes it\n")
    assert ask(capsys, "document", "--write") == (0, f"wrote {path}\n", "")
    assert ask(capsys, "document", "--check") == (0, "SPEC.md is fresh\n", "")
    path.write_text(document().replace("(MUST)", "(MAY)"))
    status, out, err = ask(capsys, "document", "--check")
    assert (status, out) == (1, "")
    assert err.startswith("SPEC.md is stale: line ")


def test_outside_a_checkout_there_is_no_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("spec.document.PROSE", Path("/nowhere/contract.md"))
    status, out, err = ask(capsys, "document")
    assert (status, out) == (2, "")
    assert err.startswith("the document is written in a checkout of the project: there is no ")


def test_without_jax_a_trace_says_that_it_was_not_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "spec.reference", raising=False)
    status, out, _ = ask(capsys, "trace", "row P=2 batch=1 in=4 out=2 float32 bias values=small seed=7")
    assert status == 0
    assert out.split("reference: ")[0] == ROW.split("reference: ")[0]
    assert out.endswith("\n\nreference: not asked, jax is not installed\n")


def test_a_reader_who_leaves_early_sees_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "spec", "document"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert err == b""


def loaded_by(*arguments: str) -> set[str]:
    """Which frameworks a fresh python -m spec loads."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['spec', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('spec', run_name='__main__')\n"
        "finally:\n"
        "    print('loaded', *({'torch', 'jax', 'jaxlib', 'conformance', 'torch_tp'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["list"], ["explain", "row.forward.bias-once"], ["document"]])
def test_reading_the_contract_loads_no_framework(arguments: list[str]):
    assert loaded_by(*arguments) == set()


def test_a_trace_loads_jax_which_shows_that_loading_is_seen():
    assert loaded_by("trace", "row P=2 batch=1 in=4 out=2 values=small") == {"jax", "jaxlib"}
