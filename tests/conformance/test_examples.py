"""The documents for who brings a layer: the files that they show are those in docs/examples, and do what the text says.

Every run is in an empty folder outside the project, with nothing in it but the example files.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
GUIDE, CONTRACT, README = ROOT / "docs" / "check-your-layer.md", ROOT / "docs" / "adapters.md", ROOT / "README.md"
FILES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_file())

SUITE = "python -m pytest -p conformance.plugin --pyargs conformance"
PART = f'{SUITE} --impl mine.py:Mine -k "run-column or run-row" -n 2'
WHOLE = f"{SUITE} --impl mine.py:Mine -n 2"
KNOWN = f'{SUITE} --impl mine.py:Mine --known known.toml -k "run-row-P2 or known"'
JAX = f'{SUITE} --impl mine_jax.py:Mine --known known_jax.toml -k "run-column or run-row" -n 2'
NEUTRAL = f"{SUITE} --impl neutral.py:Columns -k run-column"
REPLAY = 'python -m conformance replay --impl mine.py:Mine "row P=2 batch=2 in=2 out=1 float32 bias seed=0"'


def fenced(document: Path) -> list[str]:
    """The fenced blocks of a document."""
    return re.findall(r"^```\w*\n(.*?)^```$", document.read_text(), re.M | re.S)


def indented(document: Path) -> list[str]:
    """The indented blocks of a document, without their indentation."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", document.read_text(), re.M)
    return ["\n".join(line[4:] for line in block.strip("\n").splitlines()) for block in blocks]


def shown(document: Path) -> dict[str, str]:
    """The files that a document shows: blocks whose first line is a comment with the file's name."""
    blocks = (re.fullmatch(r"# ([\w.]+)\n(.*)", block, re.S) for block in fenced(document))
    return {found[1]: found[2] for found in blocks if found}


@pytest.mark.parametrize("document", [README, GUIDE, CONTRACT], ids=lambda path: path.name)
def test_a_file_is_shown_as_it_is(document: Path) -> None:
    files = shown(document)

    assert files
    assert files == {name: (EXAMPLES / name).read_text() for name in files}


def test_every_file_is_shown_somewhere() -> None:
    assert sorted(shown(GUIDE) | shown(CONTRACT)) == FILES


def test_every_command_of_the_documents_is_run_here() -> None:
    written = {
        line
        for document in (GUIDE, CONTRACT)
        for block in indented(document)
        for line in block.splitlines()
        if line.startswith(("python -m pytest", "python -m conformance "))
    }

    assert written == {PART, WHOLE, KNOWN, JAX, NEUTRAL, REPLAY}


def place(where: Path, *names: str, edit: tuple[str, str] = ("", "")) -> None:
    """Put example files into a folder, with one change to the layers."""
    for name in names:
        shutil.copy(EXAMPLES / name, where)
    old, new = edit
    if old:
        text = (where / "my_layers.py").read_text()
        assert text.count(old) == 1
        (where / "my_layers.py").write_text(text.replace(old, new))


def run(where: Path, command: str, chosen: str = "", **variables: str) -> CompletedProcess[str]:
    """A command of the documents, with other items if they are too many here."""
    words = [sys.executable, *shlex.split(command)[1:], *(["-k", chosen] if chosen else [])]
    environment = os.environ | {"CI": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)


def test_the_pytorch_example_conforms(tmp_path: Path) -> None:
    """What it declines is among the items, so that its reasons are seen."""
    place(tmp_path, "my_layers.py", "mine.py")
    chosen = "column-P2-float32 and (run or refuse or pickle) or run-row-P2-float32 or run-row-P1-autocast-bfloat16"
    done = run(tmp_path, PART, chosen)

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"^row\.forward\.bias-once +- +[1-9]\d* ", done.stdout, re.M)
    assert re.search(r"^refuse\.raises +- +[1-9]\d* ", done.stdout, re.M)
    for reason in (
        "column at world size 2, [0-9]+ examples: keeps its ProcessGroup, which cannot be copied",
        "column at world size 2, [0-9]+ examples: accepts it on purpose: load_full casts to the layer's dtype",
        "column at world size 2, [0-9]+ examples: has no gather_output",
        "row at world size 1, [0-9]+ examples: is not used under autocast",
    ):
        assert re.search(f"^unsupported: {reason}", done.stdout, re.M), reason


def test_the_planted_bug_is_reported_as_the_text_shows(tmp_path: Path) -> None:
    planted, right = fenced(GUIDE)[2:4]
    place(tmp_path, "my_layers.py", "mine.py", edit=(right, planted))
    done = run(tmp_path, REPLAY)

    assert done.returncode == 1
    assert done.stdout.strip("\n") in indented(GUIDE)

    done = run(tmp_path, PART, "run-row-P2-float32 or run-row-P1-float32")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^row\.forward\.value +[1-9]\d* +FAIL ", done.stdout, re.M), done.stdout
    assert re.search(r"looks +output: consistent with a bias that is counted (2|P) times", done.stdout)


def test_a_known_deviation_passes_while_it_is_there_and_no_longer(tmp_path: Path) -> None:
    planted, right = fenced(GUIDE)[4:6]
    place(tmp_path, "my_layers.py", "mine.py", "known.toml", edit=(right, planted))
    done = run(tmp_path, KNOWN, "run-row-P2-bfloat16 or known")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"^collectives\.dtype +- +known ", done.stdout, re.M), done.stdout

    place(tmp_path, "my_layers.py")
    done = run(tmp_path, KNOWN, "known")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "does not break collectives.dtype any more: take the entry out" in done.stdout


def test_without_the_entry_that_deviation_fails(tmp_path: Path) -> None:
    planted, right = fenced(GUIDE)[4:6]
    place(tmp_path, "my_layers.py", "mine.py", edit=(right, planted))
    done = run(tmp_path, WHOLE, "run-row-P2-bfloat16")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "collectives.dtype (MUST): " in done.stdout


def test_a_deviation_in_bits_alone_passes_with_every_processor(tmp_path: Path) -> None:
    """Without its branch for a single rank the layer has it with some; the entry that the text marks fits all."""
    (marked,) = (block for block in fenced(GUIDE) if block.startswith("[[deviation]]"))
    branch = "        if self.size == 1:\n            return F.linear(x, self.weight, self.bias)\n"
    place(tmp_path, "my_layers.py", "mine.py", edit=(branch, ""))
    (tmp_path / "known.toml").write_text(marked)
    for kernels in ({}, {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}):
        done = run(tmp_path, KNOWN, "precision-row-P1-float64 or known", **kernels)

        assert done.returncode == pytest.ExitCode.OK, done.stdout
        (seen,) = re.findall(r"^depends on the machine, (not )?seen in this run: one-rank\.bits ", done.stdout, re.M)
        assert bool(re.search(r"^one-rank\.bits +known ", done.stdout, re.M)) == (not seen), done.stdout


def test_the_jax_example_conforms(tmp_path: Path) -> None:
    place(tmp_path, "my_jax_layers.py", "mine_jax.py", "known_jax.toml")
    done = run(tmp_path, JAX, "run-column-P2-float32 or run-row-P2-float32 or known")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"^row\.forward\.bias-once +- +[1-9]\d* ", done.stdout, re.M)
    assert re.search(r"^column\.backward\.input-grad-reduced +- +[1-9]\d* ", done.stdout, re.M)


def test_the_adapter_without_a_framework_conforms(tmp_path: Path) -> None:
    place(tmp_path, "neutral.py")
    done = run(tmp_path, NEUTRAL, "run-column-P1-float32 or run-column-P2-float32")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"^column\.backward\.weight-grad +[1-9]\d* +[1-9]\d* ", done.stdout, re.M)
    # It has no unsharded layer to hold against, which must not look like a pass.
    assert not re.search(r"^one-rank\.bits ", done.stdout, re.M)


def test_an_adapter_without_a_framework_is_seen_to_fail(tmp_path: Path) -> None:
    place(tmp_path, "neutral.py")
    text = (tmp_path / "neutral.py").read_text()
    (tmp_path / "neutral.py").write_text(text.replace("outputs = [data.x @", "outputs = [2 * data.x @"))
    done = run(tmp_path, NEUTRAL, "run-column-P2-float32")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "column.forward.value (MUST): " in done.stdout


def test_the_ci_job_gives_options_that_there_are(tmp_path: Path) -> None:
    place(tmp_path, "my_layers.py", "mine.py", "known.toml", "conformance.yml")
    folded = re.search(r"- run: >\n(( {10}.*\n)+)", (tmp_path / "conformance.yml").read_text())
    assert folded
    for profile in ("quick", "ci"):
        command = re.sub(r"\$\{\{.*\}\}", profile, " ".join(folded[1].split()))
        done = run(tmp_path, f"{command} --collect-only -q", "run-column-P1-float32")

        assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
