"""The suite as a pytest plugin: command line, Hypothesis profiles, header and closing table."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Generator
from hashlib import blake2b
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, core, settings

from conformance.coverage.summary import summary, write_cells
from conformance.enumeration import small_cases
from conformance.items import items
from conformance.known import BadKnownFile, Deviation, Known, default_file
from conformance.observers import NotDeclared, Options
from conformance.ranks import StartFailed
from conformance.reporting.collect import Collector, found_in, name_of
from conformance.reporting.failure import adapter_sentence, explain, violations
from conformance.reporting.junit import test_properties
from conformance.reporting.progress import Progress
from conformance.reporting.session import Reporter, folder_for
from conformance.reporting.tables import closing_table, header
from conformance.suite import Suite
from conformance.tally import Tally
from spec import ContractViolation

# A first example starts ranks and compiles the truth; that is no fault of what is drawn.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# Without the explain phase: it traces every line, and points at the suite's own.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)
# Hypothesis's own determinism, which it prefers in CI, takes like items for one; `seed_of` gives each its own.
_PLAIN = settings(deadline=None, suppress_health_check=_SLOW, print_blob=False, phases=_PHASES, derandomize=False)
settings.register_profile("quick", _PLAIN, max_examples=25)
settings.register_profile("ci", settings.get_profile("quick"), database=None)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "quick")

_collector = pytest.StashKey[Collector]()
_suite = pytest.StashKey[Suite]()
_reporter = pytest.StashKey[Reporter]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance to the contract of tensor-parallel layers")
    group.addoption("--impl", default="torch_tp", help="torch_tp, numpy, package.module:Class or path/to/file.py:Class")
    group.addoption("--world-sizes", default="1,2,4", help="world sizes to run, of 1, 2 and 4")
    group.addoption("--backend", default="gloo", choices=("gloo", "nccl"), help="backend of the ranks' process groups")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the ranks' tensors live")
    group.addoption(
        "--clause", action="append", default=[], help="judge only clauses whose name begins so (repeatable)"
    )
    group.addoption("--attached", action="store_true", help="set by `python -m conformance attached`")
    group.addoption("--known", help="TOML file of known deviations; none: not even those of ours for this --impl")
    group.addoption("--cells", default="", metavar="FILE", help="write what was visited, cell by cell, to a CSV file")
    group.addoption("--report", default="", metavar="FOLDER", help="write a page, report.json and junit.xml there")
    group.addoption("--check-results", default="", metavar="FOLDER", help="fail where verdicts are not those there")


def options_of(config: pytest.Config) -> Options:
    """The options of a run.

    Raises:
        pytest.UsageError: a world size that is none of 1, 2, 4, an unknown clause, a bad file of known deviations.
    """
    from spec import REGISTER

    words = str(config.getoption("--world-sizes")).split(",")
    if not words or set(words) - {"1", "2", "4"}:
        raise pytest.UsageError(f"--world-sizes {','.join(words)}: give some of 1, 2, 4, separated by commas")
    for prefix in config.getoption("--clause"):
        if not any(name.startswith(prefix) for name in REGISTER):
            raise pytest.UsageError(f"--clause {prefix}: no clause begins so; `python -m spec` lists them")
    file = config.getoption("--cells")
    if file and not Path(file).absolute().parent.is_dir():
        raise pytest.UsageError(f"--cells {file}: there is no folder {Path(file).parent}")
    known = known_file(config.getoption("--known"), config.getoption("--impl"))
    try:
        Known.read(known) if known else None
    except BadKnownFile as error:
        raise pytest.UsageError(str(error)) from None
    return Options(
        config.getoption("--impl"),
        tuple(sorted(map(int, words))),
        config.getoption("--backend"),
        config.getoption("--device"),
        tuple(config.getoption("--clause")),
        known,
        (str(Path.cwd()),),
        config.getoption("--attached"),
        _scratch(config),
        bool(config.getoption("--report")),
    )


def known_file(given: str | None, impl: str) -> str:
    """The file of known deviations to use: the one that was given, else that of ours for this implementation."""
    if given is None:
        return default_file(impl)
    return "" if given == "none" else given


def _scratch(config: pytest.Config) -> str:
    """A folder for what compilers keep, gone at the end of this process's run."""
    if hasattr(config, "workerinput"):
        return str(config.workerinput["scratch"])
    folder = tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    if not config.getoption("--attached"):
        _remove_at_sigterm(config, folder)
    return folder.name


def _remove_at_sigterm(config: pytest.Config, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Of SIGTERM pytest knows nothing. Not under torchrun, where it must end a rank that is stuck in torch at once."""

    def end(number: int, _: object) -> None:
        folder.cleanup()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and current_thread() is main_thread():
        signal.signal(signal.SIGTERM, end)
        config.add_cleanup(lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before Hypothesis reads its own options, so that a run that nobody seeded still prints a seed to repeat it."""
    if config.getoption("--hypothesis-seed") is None and not hasattr(config, "workerinput"):
        profile = config.getoption("--hypothesis-profile") or settings.get_current_profile_name()
        config.option.hypothesis_seed = "0" if profile == "ci" else str(secrets.randbelow(2**32))
    options = options_of(config)
    _check_devices(options)
    folder = None if hasattr(config, "workerinput") else folder_for(config)
    suite = config.stash[_suite] = Suite(options)
    if not hasattr(config, "workerinput"):
        try:
            declaration = suite.declaration
        except (StartFailed, NotDeclared) as error:
            suite.close()
            raise pytest.UsageError(adapter_sentence(error)) from None
        found = config.stash[_collector] = Collector()
        reporter = config.stash[_reporter] = Reporter(suite, found, folder)
        config.pluginmanager.register(found)
        config.pluginmanager.register(reporter)
        config.pluginmanager.register(Progress(config, declaration.name), "conformance-progress")


def _check_devices(options: Options) -> None:
    if options.backend == "nccl" and options.device != "cuda":
        raise pytest.UsageError("--backend nccl needs --device cuda: NCCL moves tensors between GPUs only")
    if options.device == "cuda":
        from conformance.devices import gpu_count

        gpus = gpu_count()
        if gpus == 0:
            raise pytest.UsageError("--device cuda: torch sees no GPU here; leave it out to run on the CPU")
        if options.backend == "nccl" and max(options.world_sizes) > gpus:
            raise pytest.UsageError(
                f"--backend nccl --world-sizes {','.join(map(str, options.world_sizes))}: NCCL wants one GPU per rank"
                f" and there are {gpus}; use --world-sizes up to {gpus}, or --backend gloo, which shares a GPU"
            )


def pytest_report_header(config: pytest.Config) -> list[str]:
    suite = config.stash[_suite]
    profile = settings.get_current_profile_name()
    seed = str(config.getoption("--hypothesis-seed"))
    lines = header(suite.options, suite, profile, seed)
    if suite.options.known:
        lines.append(f"  known deviations: {len(Known.read(suite.options.known).deviations)}, {suite.options.known}")
    return [*lines, "  small cases: every one, but for precision; larger ones are drawn"] if _deep() else lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[_suite]
    for cost in ("item", "compiled_item"):
        if cost in metafunc.fixturenames:
            chosen = [item for item in items(suite.options.world_sizes) if item.cost == cost]
            metafunc.parametrize(cost, chosen, ids=str)
    if "small_item" in metafunc.fixturenames:
        chosen = items(suite.options.world_sizes) if _deep() else []
        metafunc.parametrize("small_item", [item for item in chosen if next(small_cases(item), None)], ids=str)
    if "deviation" in metafunc.fixturenames:
        entries = {
            n: entry for n, entry in enumerate(_deviations(suite.options)) if not not_looked_for(suite.options, entry)
        }
        names = [f"{entry.clause}-{number}" for number, entry in entries.items()]
        metafunc.parametrize("deviation", list(entries.values()), ids=names)


def _deviations(options: Options) -> tuple[Deviation, ...]:
    return Known.read(options.known).deviations if options.known else ()


def not_looked_for(options: Options, entry: Deviation) -> str:
    """Why a known deviation cannot be looked for in this run, or an empty string."""
    if entry.case.world not in options.world_sizes:
        return f"world size {entry.case.world}: not in --world-sizes"
    if options.clauses and not entry.clause.startswith(("ranks.", *options.clauses)):
        return "its clause is not judged: --clause"
    return ""


def _deep() -> bool:
    return settings.get_current_profile_name() == "deep"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there is nothing to choose from, such as known deviations without a file of them, there is no test."""
    items[:] = [item for item in items if not item.name.endswith("[NOTSET]")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A failure that is as small as it gets is diagnosed; one of ranks that did not come back fails its test too."""
    suite = item.config.stash[_suite]
    suite.tally, suite.failures = Tally(), []
    suite.begin_item()
    core.global_force_seed = seed_of(str(item.config.getoption("--hypothesis-seed")), item.name)
    told: list[ContractViolation] = []
    try:
        yield
    except (ContractViolation, BaseExceptionGroup) as error:
        explain(suite, error)
        told += violations(error)
        raise
    finally:
        item.user_properties += test_properties(suite, item, told)
    texts = suite.tally.intermittent
    if texts:
        pytest.fail("a failure of ranks did not come back on fresh ranks:\n" + "\n".join(texts), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test of the suite found travels with its report, from whatever process."""
    report = yield
    if call.when == "call" and name_of(item.nodeid):
        report.found = found_in(item.config.stash[_suite], item.nodeid)
    return report


def seed_of(seed: str, item: str) -> int:
    """The seed of one item in a run: of one seed for all, items that are alike would draw alike."""
    return int.from_bytes(blake2b(f"{seed} {item}".encode(), digest_size=8).digest())


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """The implementation under examination, with this worker's ranks."""
    from spec.reference import cache_compilations_in

    cache = getattr(pytestconfig, "cache", None)
    cache_compilations_in(str(cache.mkdir("jax")) if cache else "")
    return pytestconfig.stash[_suite]


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_suite].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The workers' compilers keep their files in the controller's folder, which outlives a worker that is killed."""
    node.workerinput["scratch"] = node.config.stash[_suite].options.scratch


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    options = config.stash[_suite].options
    not_run = [f"world size {size}: not in --world-sizes" for size in (1, 2, 4) if size not in options.world_sizes]
    if options.clauses:
        not_run.append(f"clauses that do not begin with {' or '.join(options.clauses)}: --clause")
    for entry in _deviations(options):
        if reason := not_looked_for(options, entry):
            not_run.append(f"known deviation from {entry.clause} ({entry.case}): {reason}")
    terminalreporter.section(f"conformance of {config.stash[_suite].declaration.name}")
    tally, reachable = config.stash[_collector].tally, items(options.world_sizes)
    strict = config.stash[_suite].declaration.strict
    for line in [*closing_table(tally, options.world_sizes, not_run, strict), *summary(tally, reachable)]:
        terminalreporter.write_line(line)
    file = config.getoption("--cells")
    if file:
        write_cells(file, tally, reachable)
        terminalreporter.write_line(f"cells written to {file}")
    for line in config.stash[_reporter].lines:
        terminalreporter.write_line(line)
