"""Mutation testing: change one thing in a module, run the tests that should notice, change it back.

    python tests/mutation/run.py                          # all of targets.toml, on from where the last run stopped
    python tests/mutation/run.py spec/clauses torch_tp/layers/row.py
    python tests/mutation/run.py --again spec/bounds.py   # the survivors once more, after tests were added
    python tests/mutation/run.py --report                 # run nothing, show what is known

Cosmic Ray makes the mutants and keeps the results, in `.mutation`, a file per module. The tests run in a fork of
this process, in a copy of the project: no import of JAX or torch per mutant, and a run that is stopped leaves no
mutant in the sources.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import os
import re
import shutil
import signal
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import unified_diff
from importlib import import_module
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".mutation"
TREE = FOLDER / "tree"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "venv", "*.egg-info")
# Of the many replacements that Cosmic Ray has for an operator, those that differ from it in few places: what replaces a
# division by a shift is found by any test that reaches the line.
OPERATORS = re.compile(
    r"core/(?:AddNot|NumberReplacer|ExceptionReplacer|ZeroIterationForLoop"
    r"|Replace(?:True|False|And|Or|Break|Continue)With\w+"
    r"|ReplaceUnaryOperator_\w+"
    r"|ReplaceBinaryOperator_(?:Add_Sub|Sub_Add|Mul_Add|Mul_FloorDiv|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|Pow_Mul"
    r"|RShift_LShift|LShift_RShift|BitOr_BitAnd|BitOr_BitXor|BitAnd_BitOr|BitXor_BitOr)"
    r"|ReplaceComparisonOperator_(?:Eq_NotEq|Eq_GtE|NotEq_Eq|NotEq_Gt|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE"
    r"|GtE_Gt|GtE_Lt|Is_IsNot|IsNot_Is))"
)


@dataclass(frozen=True)
class Target:
    """A module to mutate.

    Attributes:
        module: its path in the project.
        tests: pytest's arguments, those that most likely notice first.
        preload: what is imported before the forks.
        timeout: seconds after which the tests count as failed: a mutant may wait for ever.
    """

    module: str
    tests: tuple[str, ...]
    preload: tuple[str, ...]
    timeout: float

    @property
    def session(self) -> Path:
        """Named after the module's text as well: a changed module has other mutants."""
        digest = hashlib.blake2b((ROOT / self.module).read_bytes(), digest_size=4).hexdigest()
        return FOLDER / f"{self.module.removesuffix('.py').replace('/', '.')}-{digest}.sqlite"


def targets(wanted: list[str]) -> Iterator[Target]:
    """Those of targets.toml that a wanted path names or holds, in its order; all where none is wanted."""
    for entry in tomllib.loads((Path(__file__).parent / "targets.toml").read_text())["target"]:
        for pattern in entry["modules"]:
            for path in sorted(ROOT.glob(pattern)):
                module = path.relative_to(ROOT).as_posix()
                if not wanted or any(module == one or module.startswith(f"{one}/") for one in wanted):
                    yield Target(module, tuple(entry["tests"]), tuple(entry["preload"]), entry["timeout"])


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant("")
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def meaning(source: str) -> str:
    """The code without its annotations, which nobody evaluates; empty where it is none, or the compiler warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(source, "mutant", "exec")
    except (SyntaxError, SyntaxWarning):
        return ""
    return ast.dump(_WithoutAnnotations().visit(ast.parse(source)))


def mutated(source: str, mutation: MutationSpec) -> str:
    return mutate_code(source, get_operator(mutation.operator_name)(), mutation.occurrence) or ""


def prepare(target: Target, db: WorkDB) -> None:
    """Enter the mutants of a module, and mark as skipped those that are not worth a run."""
    init([Path(target.module)], db, {})
    source = (ROOT / target.module).read_text()
    known = {"", meaning(source)}
    for item in list(db.work_items):
        (mutation,) = item.mutations
        wanted = OPERATORS.fullmatch(mutation.operator_name)
        seen = meaning(mutated(source, mutation)) if wanted else ""
        if seen in known:
            db.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
        known.add(seen)


def tests_in_a_fork(target: Target) -> tuple[TestOutcome, str]:
    """Run the target's tests in a process of their own; the outcome, and the test that failed or "timeout"."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run_tests(target.tests)
    end = time.monotonic() + target.timeout
    ended, status = 0, 1
    while not ended and time.monotonic() < end:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the ranks that it started, too
    if not ended:
        os.waitpid(child, 0)
        return TestOutcome.KILLED, "timeout"
    if status == 0:
        return TestOutcome.SURVIVED, ""
    lines = (FOLDER / "output").read_text(errors="replace").splitlines()
    return TestOutcome.KILLED, next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")


def _run_tests(arguments: tuple[str, ...]) -> None:
    code = 1
    try:
        os.setsid()
        output = os.open(FOLDER / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def examine(target: Target, item: WorkItem) -> WorkResult:
    (mutation,) = item.mutations
    with use_mutation(Path(target.module), get_operator(mutation.operator_name)(), mutation.occurrence) as (old, new):
        outcome, why = tests_in_a_fork(target)
    return WorkResult(WorkerOutcome.NORMAL, why, outcome, difference(old, new))


def difference(old: str, new: str) -> str:
    """The lines that are others, under their numbers."""
    lines = list(unified_diff(old.split("\n"), new.split("\n"), n=0, lineterm=""))[2:]
    return "\n".join(f"    {line}" for line in lines)


def run(target: Target, db: WorkDB, again: bool, share: float) -> None:
    """Examine what has no result yet, or the survivors."""
    if not db.num_work_items:
        prepare(target, db)
    items = survivors(db) if again else list(db.pending_work_items)
    items = [item for item in items if drawn(item) < share]
    if not items:
        return
    write_bytecode(True)
    if tests_in_a_fork(target)[0] is not TestOutcome.SURVIVED:
        sys.exit(f"{target.module}: the tests fail without a mutant, see {FOLDER / 'output'}")
    write_bytecode(False)
    for count, item in enumerate(items, 1):
        start = time.monotonic()
        result = examine(target, item)
        db.set_result(item.job_id, result)
        print(
            f"{target.module} {count}/{len(items)} {time.monotonic() - start:.1f} s: {result.test_outcome.value} "
            f"{(result.output or '')[:120]}",
            flush=True,
        )
        if not result.is_killed:
            print(result.diff, flush=True)


def drawn(item: WorkItem) -> float:
    """A number of 0 to 1 by chance, the same in every run, so that a larger share holds the smaller one."""
    (mutation,) = item.mutations
    key = f"{mutation.module_path} {mutation.operator_name} {mutation.occurrence}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) / 2**32


def write_bytecode(wanted: bool) -> None:
    """Never of a mutant: another of the same size, in the same second, would be taken for it."""
    sys.dont_write_bytecode = not wanted
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if wanted else "1"


def survivors(db: WorkDB) -> list[WorkItem]:
    alive = {job for job, result in db.results if result.test_outcome is TestOutcome.SURVIVED}
    return [item for item in db.work_items if item.job_id in alive]


def report(target: Target, db: WorkDB) -> Counter[str]:
    """Print a module's survivors and count its mutants."""
    results = dict(db.results)
    counts = Counter(
        result.test_outcome.value for result in results.values() if result.worker_outcome is WorkerOutcome.NORMAL
    )
    counts["timeout"] = sum(result.output == "timeout" for result in results.values())
    counts["not run"] = db.num_work_items - len(results)
    for result in results.values():
        if result.test_outcome is TestOutcome.SURVIVED:
            print(f"{target.module} survived\n{result.diff}")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="mutation testing of spec and torch_tp")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="a module or folder of targets.toml; all if none")
    parser.add_argument("--again", action="store_true", help="run the survivors again")
    parser.add_argument("--report", action="store_true", help="run nothing, show what is known")
    parser.add_argument("--share", type=float, default=1.0, help="examine this share of the mutants, chosen by chance")
    options = parser.parse_args()
    chosen = list(targets([module.rstrip("/") for module in options.modules]))
    if not chosen:
        parser.error(f"targets.toml has none of {', '.join(options.modules)}")
    FOLDER.mkdir(exist_ok=True)
    if not options.report:
        lock = (FOLDER / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another run is on, and there is one copy of the project to mutate; wait for it, or end it")
        shutil.rmtree(TREE, ignore_errors=True)
        shutil.copytree(ROOT, TREE, ignore=NOT_COPIED)
        os.chdir(TREE)
        sys.path.insert(0, str(TREE))
        os.environ["PYTHONPATH"] = str(TREE)
    for target in chosen if not options.report else ():
        for name in target.preload:
            import_module(name)
        with use_db(str(target.session)) as db:
            run(target, db, options.again, options.share)
    table = []
    for target in chosen:
        with use_db(str(target.session)) as db:
            counts = report(target, db)
        table.append((target.module, *(counts[name] for name in ("killed", "timeout", "survived", "not run"))))
    print(f"\n{'module':32} {'mutants':>8} {'killed':>8} {'(timeout)':>9} {'survived':>9} {'not run':>8}")
    for module, killed, late, survived, left in table:
        print(f"{module:32} {killed + survived + left:8} {killed:8} {late:9} {survived:9} {left:8}")


if __name__ == "__main__":
    main()
