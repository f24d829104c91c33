"""The command line of a run, and what is wrong with one that cannot be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.known import BadKnownFile, Known, default_file
from conformance.observers import Options
from conformance.plugin.scratch import scratch_folder


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
    from spec import LAWS, REGISTER

    words = str(config.getoption("--world-sizes")).split(",")
    if not words or set(words) - {"1", "2", "4"}:
        raise pytest.UsageError(f"--world-sizes {','.join(words)}: give some of 1, 2, 4, separated by commas")
    for prefix in config.getoption("--clause"):
        if not any(name.startswith(prefix) for name in (*REGISTER, *LAWS)):
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
        scratch_folder(config),
        bool(config.getoption("--report")),
    )


def known_file(given: str | None, impl: str) -> str:
    """The file of known deviations to use: the one that was given, else that of ours for this implementation."""
    if given is None:
        return default_file(impl)
    return "" if given == "none" else given


def check_devices(options: Options) -> None:
    """Refuse what this machine's GPUs cannot do.

    Raises:
        pytest.UsageError: NCCL without GPUs, no GPU, or fewer GPUs than NCCL wants.
    """
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
