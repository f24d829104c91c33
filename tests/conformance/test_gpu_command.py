"""The GPU command, as far as it goes without a GPU: what it says and would run, and its probe over gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance import gpu
from conformance.gpu import NO_GPU, Plan, SuiteRun, arguments_of, main, places, plan
from conformance.items import items
from conformance.probe import COLLECTIVES, DTYPES, OK, Question, probe, summary, table
from conformance.ranks import Reply

ROOT = Path(__file__).parents[2]


def answers_for(gpus: int, faults: Mapping[Question, str] | None = None) -> dict[Question, str]:
    """A probe in which all is well, but for the faults."""
    asked = [
        Question(*place, collective, dtype) for place in places(gpus) for collective in COLLECTIVES for dtype in DTYPES
    ]
    return dict.fromkeys(asked, OK) | dict(faults or {})


def run_module(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", name, *args],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_it_says_one_sentence_and_exits_with_2():
    done = run_module("conformance.gpu", "-x")

    assert (done.returncode, done.stdout, done.stderr) == (2, "", NO_GPU + "\n")


@pytest.mark.parametrize(
    ("gpus", "runs"),
    [
        (0, ()),
        (1, (SuiteRun("nccl", (1,)), SuiteRun("gloo", (2, 4)))),
        (2, (SuiteRun("nccl", (1, 2)), SuiteRun("gloo", (4,)))),
        (3, (SuiteRun("nccl", (1, 2)), SuiteRun("gloo", (4,)))),
        (4, (SuiteRun("nccl", (1, 2, 4)),)),
    ],
)
def test_nccl_takes_world_sizes_up_to_the_number_of_gpus_and_gloo_the_rest(gpus: int, runs: tuple[SuiteRun, ...]):
    planned = plan(gpus, answers_for(gpus))

    assert planned.runs == runs
    assert planned.not_run == (() if gpus else ("everything: torch sees no GPU",))


def test_only_world_sizes_asked_for_are_probed_and_run():
    assert places(2, (2, 4)) == [("nccl", 2), ("gloo", 2)]
    assert plan(2, answers_for(2), (4,)).runs == (SuiteRun("gloo", (4,)),)


def test_a_dtype_that_a_backend_cannot_move_is_left_out_with_the_probes_line():
    faults = {Question("gloo", 2, "all-reduce", "bfloat16"): "RuntimeError: Invalid scalar type"}

    planned = plan(1, answers_for(1, faults))

    assert planned.runs == (SuiteRun("nccl", (1,)), SuiteRun("gloo", (2, 4), ((2, "bfloat16"), (4, "bfloat16"))))
    assert planned.not_run == (
        "bfloat16 at world size 2 over gloo: all-reduce bfloat16: RuntimeError: Invalid scalar type",
        "bfloat16 at world size 4 over gloo: all-reduce bfloat16: RuntimeError: Invalid scalar type",
    )


def test_what_no_layer_needs_leaves_nothing_out():
    faults = {Question("gloo", 2, "reduce-scatter", dtype): "RuntimeError: no" for dtype in DTYPES}

    assert plan(1, answers_for(1, faults)) == plan(1, answers_for(1))


def test_where_nccl_does_not_work_gloo_takes_its_world_size():
    faults = {Question("nccl", 2, "all-reduce", "float32"): "DistBackendError: NCCL error"}

    assert plan(2, answers_for(2, faults)) == Plan(
        (SuiteRun("nccl", (1,)), SuiteRun("gloo", (2, 4))),
        ("world size 2 over nccl: all-reduce float32: DistBackendError: NCCL error",),
    )


def test_where_neither_backend_works_a_world_size_is_not_run():
    dead = dict.fromkeys(answers_for(1), "rank 0 died exit code 1")

    planned = plan(1, dead)

    assert planned.runs == ()
    assert planned.not_run == (
        "world size 1 over nccl: all-reduce float32: rank 0 died exit code 1",
        "world size 1 over gloo: all-reduce float32: rank 0 died exit code 1",
        "world size 2 over gloo: all-reduce float32: rank 0 died exit code 1",
        "world size 4 over gloo: all-reduce float32: rank 0 died exit code 1",
    )


def test_pytest_is_given_the_plan_and_the_extra_arguments():
    assert arguments_of(SuiteRun("nccl", (1, 2)), ["-x", "-k", "row"]) == [
        str(ROOT / "conformance"),
        *("--backend", "nccl", "--device", "cuda", "--world-sizes", "1,2"),
        *("-x", "-k", "row"),
    ]


def test_a_dtype_left_out_is_deselected_beside_what_was_asked_for():
    run = SuiteRun("gloo", (2, 4), ((2, "float16"),))

    assert arguments_of(run, ["-k", "row or column"])[-2:] == [
        "-k",
        "(row or column) and not (P2-float16 or P2-autocast-float16 or P1of2-float16 or P1of2-autocast-float16)",
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", [2, 4])
def test_deselecting_takes_the_items_of_that_dtype_and_world_size_and_no_others(dtype: str, world: int):
    expression = arguments_of(SuiteRun("gloo", (2, 4), ((world, dtype),)), [])[-1]
    names = expression.removeprefix("not (").removesuffix(")").split(" or ")

    deselected = {item for item in items() if any(name in str(item) for name in names)}

    assert deselected == {
        item
        for item in items()
        if max(item.P, item.world) == world and (item.autocast == dtype or (item.dtype == dtype and not item.autocast))
    }


@pytest.mark.parametrize("option", [["--backend", "gloo"], ["--device=cpu"], ["--world-sizes", "3"]])
def test_options_that_it_cannot_follow_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(option)

    assert ended.value.code == 2
    assert option[0].partition("=")[0] in capsys.readouterr().err


def test_the_table_has_a_column_per_dtype_and_says_what_went_wrong():
    answers = {question: OK for question in answers_for(1) if question.collective == "all-reduce"}
    answers[Question("gloo", 2, "all-reduce", "bfloat16")] = "RuntimeError: Invalid scalar type"

    assert table(answers) == [
        "backend  ranks  collective       float32   float64  bfloat16   float16",
        "nccl         1  all-reduce            ok        ok        ok        ok",
        "gloo         2  all-reduce            ok        ok        no        ok",
        "                bfloat16: RuntimeError: Invalid scalar type",
    ]


def test_a_summary_names_the_cause_before_its_victims():
    traceback = 'Traceback:\n  File "rank.py", line 1, in join\n    join()\nRuntimeError: NCCL error\nLast error: x\n'
    victim, cause = Reply(0, "victim"), Reply(1, "raised", stack=traceback)

    assert summary([victim, cause]) == "rank 1 raised RuntimeError: NCCL error"
    assert summary([Reply(0, "returned", b"ok"), Reply(1, "died", exit="exit code 3")]) == "rank 1 died exit code 3"
    assert summary([Reply(0, "returned", b"ok")]) == OK


def test_gloo_on_the_cpu_moves_everything():
    answers = probe([("gloo", 1), ("gloo", 2)], "cpu")

    assert len(answers) == 2 * len(COLLECTIVES) * len(DTYPES)
    assert set(answers.values()) == {OK}


def test_a_backend_that_cannot_start_is_an_answer():
    answers = probe([("no_such_backend", 1)], "cpu")

    assert len(answers) == len(COLLECTIVES) * len(DTYPES)
    assert all(text.startswith("rank 0 raised ") and text.endswith("no_such_backend") for text in answers.values())


def test_the_probe_is_a_command_of_its_own():
    done = run_module("conformance.probe", "--device", "cpu", "--world-sizes", "1")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "gloo         1  all-reduce            ok        ok        ok        ok"


def test_each_backend_s_run_has_a_report_of_its_own_and_all_have_one_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[1:])
        if "--report" in command:
            Path(command[-1]).mkdir()
            (Path(command[-1]) / "report.json").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu, "gpu_count", lambda: 2)
    monkeypatch.setattr(gpu, "probe", lambda asked, device: answers_for(2))
    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "out"

    assert main(["--report", str(out), "-k", "row"]) == 0
    folders = [str(out / backend) for backend in ("nccl", "gloo")]
    assert [command[-2:] for command in commands[:2]] == [["--report", folder] for folder in folders]
    assert commands[2:] == [["-m", "conformance", "report", *folders, "--out", str(out)]]
    assert main(["-k", "row"]) == 0
    assert all("--report" not in command for command in commands[3:])
