"""SPEC.md says what the register says, all of it, and a stale one is seen."""

import re
from pathlib import Path

import pytest

from spec import document as documents
from spec.case import GROUPS, LAYERS, LAYOUTS, PROCEDURES, VALUES, Case, CaseSyntaxError
from spec.document import SPEC, candidates, document, example, linked, stale
from spec.faults import FAULTS
from spec.register import REGISTER

TEXT = document()

# Questions that users of several libraries have asked again and again; the document owes each an answer.
RECURRING = [
    "huggingface/text-generation-inference#1036",
    "GeeeekExplorer/nano-vllm#99",
    "NVIDIA/Megatron-LM#236",
    "NVIDIA/Megatron-LM#1635",
    "NVIDIA/Megatron-LM#559",
    "NVIDIA/Megatron-LM#19",
    "Dao-AILab/flash-attention#1244",
    "pytorch/pytorch#157606",
    "NVIDIA/Megatron-LM#443",
    "NVIDIA/Megatron-LM#474",
    "NVIDIA/Megatron-LM#383",
    "NVIDIA/TransformerEngine#435",
    "NVIDIA/apex#1686",
    "pytorch/torchtitan#2217",
    "NVIDIA/Megatron-LM#445",
    "bigscience-workshop/Megatron-DeepSpeed#394",
    "NVIDIA/TransformerEngine#1882",
    "deepseek-ai/DeepSeek-V3#298",
    "pytorch/pytorch#144359",
    "pytorch/pytorch#120158",
    "NVIDIA/Megatron-LM#248",
    "NVIDIA/Megatron-LM#1410",
    "microsoft/LMOps#130",
]


def section(title: str) -> str:
    """The text between a heading of level two and the next."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_document_in_the_tree_is_fresh():
    assert stale(SPEC.read_text(encoding="utf-8")) == ""


def test_a_changed_line_is_stale_and_named():
    doctored = TEXT.replace("b once, after the sum", "b P times, before the sum")
    number = TEXT.split("\n").index(next(line for line in TEXT.split("\n") if "b once, after the sum" in line)) + 1
    assert stale(doctored) == (
        f"SPEC.md is stale: line {number} is "
        "'- forward: `Y = sum_r X_r W_r^T + b`: b P times, before the sum, for every P' and should be "
        "'- forward: `Y = sum_r X_r W_r^T + b`: b once, after the sum, for every P'; "
        "run python -m spec document --write"
    )


def test_a_lost_end_is_stale():
    lines = TEXT.split("\n")
    assert stale("\n".join(lines[:-9])) == (
        f"SPEC.md is stale: it has {len(lines) - 9} lines and should have {len(lines)}; "
        "run python -m spec document --write"
    )


def test_a_changed_clause_makes_it_stale(monkeypatch: pytest.MonkeyPatch):
    entry = REGISTER["row.forward.bias-once"]
    monkeypatch.setitem(REGISTER, entry.name, type(entry)(**{**vars(entry), "level": "SHOULD"}))
    assert "'#### `row.forward.bias-once` (SHOULD)'" in stale(TEXT)


@pytest.mark.parametrize("name", REGISTER)
def test_every_clause_stands_in_it(name: str):
    entry = REGISTER[name]
    heading = f"#### `{name}` ({entry.level})\n\n**{entry.title}.** {linked(entry.text)}\n"
    assert heading in section("Clauses")
    after = section("Clauses").split(heading)[1].split("####")[0]
    assert (f"Origin: {linked(entry.origin)}." in after) if entry.origin else ("Origin" not in after)


@pytest.mark.parametrize("name", REGISTER)
def test_every_clause_shows_a_case_that_could_break_it(name: str):
    case = example(REGISTER[name])
    assert case is not None, f"no candidate of spec.document can break {name}; add one to candidates()"
    assert REGISTER[name].applies(Case.parse(str(case)))


def test_names_of_clauses_in_the_prose_exist():
    prose = documents.PROSE.read_text(encoding="utf-8")
    first = "|".join({name.split(".")[0] for name in REGISTER})
    named = re.findall(rf"`((?:{first})\.[\w.-]+)`", prose)
    assert len(named) > 10
    assert [name for name in named if name not in REGISTER] == []


def test_every_recurring_question_is_answered_with_its_threads():
    answers = section("Questions that recur")
    assert len(RECURRING) == 23
    assert [thread for thread in RECURRING if linked(thread) not in answers] == []
    assert len(re.findall(r"^\*\*.+?\?\*\* ", answers.replace("\n", " ").replace(" **", "\n**"), re.MULTILINE)) == 9


def test_threads_become_links_but_code_does_not():
    assert linked("see pytorch/pytorch#1.") == "see [pytorch/pytorch#1](https://github.com/pytorch/pytorch/issues/1)."
    assert linked("`pytorch/pytorch#1`") == "`pytorch/pytorch#1`"
    assert linked(linked("a/b#1")) == linked("a/b#1")


def test_every_word_of_a_case_line_is_explained():
    with pytest.raises(CaseSyntaxError) as caught:
        Case.parse("row zz")
    words = str(caught.value).split("words are ")[1].split("\n")[0].split(", ")
    assert len(words) > 20
    grammar = section("Case lines").split("###")[0]
    assert [word for word in words if f"`{word}" not in grammar] == []
    assert [word for word in (*LAYERS, *LAYOUTS, *VALUES, *GROUPS) if word not in grammar] == []


def test_every_procedure_and_fault_is_listed():
    assert [name for name, text in PROCEDURES.items() if f"| `{name}` | {text} |" not in TEXT] == []
    assert [name for name, fault in FAULTS.items() if f"| `{name}` | {fault.title} |" not in TEXT] == []


def test_tables_are_those_of_the_contract():
    assert "| `copy` | R/R to R/P | identity | all-reduce | I to R |" in TEXT
    assert "| `gather(dim)` | S/S to R/R | all-gather | own slice | V to I |" in TEXT
    assert "| weight, and its gradient | `[O/P, I]` S(0) | `[O/P, I]` S(0) |" in TEXT
    assert "| output Y | `[..., O]` R | `[..., O]` R | `[..., O]` P |" in TEXT
    assert "| collectives, backward | none | one all-gather of `[..., I/P]` | none |" in TEXT
    assert "| float32 | 2^-24 | 2^-24 | 2^-149 | 2^24 | 1023 |" in TEXT


def test_candidates_are_cases_of_every_procedure_and_layer():
    drawn = list(candidates())
    assert {case.procedure for case in drawn} == set(PROCEDURES)
    assert {case.layer for case in drawn} == set(LAYERS)


@pytest.mark.parametrize("prose", ["# nothing asked for\n", "{{functions}}\n\n{{wat}}\n"])
def test_prose_that_leaves_out_or_invents_a_part_is_refused(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents, "PROSE", tmp_path / "contract.md")
    documents.PROSE.write_text(prose)
    with pytest.raises(ValueError, match=r"^contract\.md asks for the parts \[.*\]; there are \['clauses', 'column'"):
        document()


def test_it_is_ascii_and_has_no_part_left_to_fill():
    assert TEXT.isascii()
    assert "{{" not in TEXT
