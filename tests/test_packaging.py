"""What installing, checking and importing the project promises, read from the files that promise it."""

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["conformance", "spec", "torch_tp"]
TYPED = ["spec", "torch_tp"]  # those whose types are checked
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini")
ENVIRONMENTS = [section.removeprefix("testenv:") for section in TOX.sections() if re.match(r"testenv:\w", section)]


def name_of(requirement: str) -> str:
    """The distribution that a requirement names, without extras, version or marker."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def resolved(extra: str) -> set[str]:
    """The distributions an extra adds to the library's own; `torch-tp[other]` stands for what `other` adds."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if other := re.fullmatch(r"torch-tp\[(\w+)\]", requirement):
            names |= resolved(other[1])
        else:
            names.add(name_of(requirement))
    return names


def pins() -> dict[str, str]:
    """constraints.txt as {name: version}; anything but `name==version` in it is an error."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in lines)


def test_plain_install_needs_torch_alone():
    """Who installs the library gets torch, in a range, and nothing that serves only to check it."""
    assert PROJECT["dependencies"] == ["torch>=2.11"]


SUITE = {"hypothesis", "jax", "numpy", "pytest", "pytest-xdist"}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("jax", {"jax"}),
        ("conformance", SUITE),
        ("models", {"transformers"}),
        ("dev", SUITE | {"transformers", "build", "import-linter", "mypy", "ruff", "tox"}),
    ],
)
def test_extra_installs(extra, expected):
    """Each extra brings what its users need, and no more."""
    assert resolved(extra) == expected


def test_no_other_extras():
    """An extra nobody listed above is an extra nobody checks."""
    assert sorted(PROJECT["optional-dependencies"]) == ["conformance", "dev", "jax", "models"]


def test_installing_puts_no_plugin_into_pytest():
    """The suite runs when it is asked for; it does not enter every pytest run of the machine it is installed on."""
    assert "entry-points" not in PROJECT


@pytest.mark.parametrize("package", PACKAGES)
def test_package_travels_with_its_types(package):
    """Each room is a package of the wheel, and marked as typed where its types are checked."""
    assert package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / package / "__init__.py").is_file()
    assert (ROOT / package / "py.typed").is_file() == (package in TYPED)


def test_wheel_holds_nothing_else():
    """No `tests` or `benchmarks` in anyone's site-packages."""
    assert sorted(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


def test_every_version_is_pinned():
    """What an environment of tox.ini installs by name has its version in constraints.txt, torch the one CI has."""
    names = (
        resolved("conformance")
        | resolved("models")
        | {name_of(r) for r in PROJECT["dependencies"] + PYPROJECT["build-system"]["requires"]}
    )
    for environment in ENVIRONMENTS:
        names |= {name_of(dep) for dep in TOX[f"testenv:{environment}"].get("deps", "").split()}

    assert names - set(pins()) == set()
    assert pins()["torch"] == "2.13.0"


def test_default_environments():
    """`tox` alone checks everything that needs no GPU; CI runs that and nothing else."""
    listed = [name.strip() for name in TOX["tox"]["env_list"].split(",")]

    assert listed == ["lint", "format", "walls", "typing", "tests", "conformance"]
    assert set(ENVIRONMENTS) - set(listed) == {"gpu", "benchmarks", "mutants", "mutation", "page", "peers"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environment_says_what_it_does(environment):
    """One sentence and one command each. tox takes a leading `word:` for a condition, and shows no description then."""
    section = TOX[f"testenv:{environment}"]

    assert re.match(r"[^\s:]+ ", section["description"])
    assert len(section["commands"].strip().splitlines()) == 1


def test_ci_runs_what_the_readme_says():
    """CI adds no step that a reader of the README would not know of."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line.startswith("python ")]
    readme = (ROOT / "README.md").read_text()

    assert commands == ["python -m pip install tox", "python -m tox"]
    assert commands[0] in readme
    assert re.search(r"^\W*(python -m pip install tox && )?(python -m )?tox(`| +#|$)", readme, re.MULTILINE)


BREACHES = [
    ("spec-alone", "spec/clauses/new.py", "import torch"),
    ("spec-alone", "spec/new.py", "import torch_tp"),
    ("spec-alone", "spec/new.py", "def f():\n    from conformance import ranks"),
    ("spec-jax", "spec/new.py", "import jax.numpy as jnp"),
    ("library-alone", "torch_tp/new.py", "from spec import case"),
    ("library-alone", "torch_tp/new.py", "import conformance"),
    ("library-alone", "torch_tp/new.py", "import numpy as np"),
    ("library-needs-torch-alone", "torch_tp/new.py", "import jax"),
    ("library-needs-torch-alone", "torch_tp/new.py", "def f():\n    import safetensors.torch"),
    ("library-rooms", "torch_tp/group.py", "from torch_tp import layers"),
    ("library-rooms", "torch_tp/layers/linear.py", "def f():\n    from torch_tp import models"),
    ("library-rooms", "torch_tp/layers/linear.py", "import torch_tp.training"),
    ("library-rooms", "torch_tp/new.py", ""),
    ("layers-one-way", "torch_tp/layers/products.py", "from torch_tp.layers import column"),
    ("layers-one-way", "torch_tp/layers/row.py", "from torch_tp.layers import column"),
    ("layers-one-way", "torch_tp/layers/new.py", ""),
    ("ranks-light", "conformance/ranks/new.py", "import spec.case"),
    ("ranks-light", "conformance/ranks/new.py", "import hypothesis"),
    ("ranks-light", "conformance/ranks/new.py", "from conformance import heavy"),
    ("front-light", "conformance/__init__.py", "from conformance import heavy"),
    ("front-light", "conformance/__init__.py", "from spec.reference import truth"),
    ("frameworks-in-ranks", "conformance/new.py", "import torch.distributed"),
    ("frameworks-in-ranks", "conformance/new.py", "import torch_tp"),
    ("frameworks-in-ranks", "conformance/models/new.py", "import transformers"),
    ("models-in-ranks", "conformance/models/inside/new.py", "from conformance import heavy"),
    ("models-in-ranks", "conformance/models/inside/new.py", "from conformance.models import jax_twin"),
    ("reporting-rooms", "conformance/reporting/record.py", "from conformance.reporting import page"),
    ("reporting-rooms", "conformance/reporting/picture.py", "import conformance.reporting.results"),
    ("reporting-rooms", "conformance/reporting/evidence.py", "def f():\n    from conformance.reporting import failure"),
    ("reporting-rooms", "conformance/reporting/new.py", ""),
]
FOUNDATION = ["autocast", "c10d", "checks", "collectives", "debug", "errors", "functions", "group"]
FOUNDATION += ["internals", "placements", "runtime"]
LAYERS = ["attention", "column", "fused", "gradients", "linear", "products", "row", "shared_input"]
REPORTING = ["command", "session", "output", "page", "picture", "results", "failure", "evidence", "record"]


def rooms(top: Path) -> None:
    """The rooms of this project, nearly empty, with the imports that the walls let through."""
    contents = {
        "spec/reference.py": "import jax",
        "spec/clauses/__init__.py": "",
        **{f"torch_tp/{module}.py": "" for module in [*FOUNDATION, "training", "models"]},
        **{f"torch_tp/layers/{module}.py": "import torch" for module in LAYERS},
        "torch_tp/models.py": "from torch_tp.layers import column",
        "conformance/heavy.py": "import pytest",
        "conformance/ranks/main.py": "import torch",
        "conformance/adapters/own.py": "import torch_tp",
        "conformance/models/inside/own.py": "import torch",
        "conformance/models/jax_twin.py": "import spec.reference",
        **{f"conformance/reporting/{room}.py": "" for room in REPORTING},
        "conformance/reporting/page.py": "from conformance.reporting import picture, record",
    }
    for file, text in contents.items():
        path = top / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for package in path.relative_to(top).parents[:-1]:
            (top / package / "__init__.py").touch()
    (top / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())


def lint_imports(top: Path, contract: str) -> subprocess.CompletedProcess[str]:
    """Judge the rooms under `top` by one of our contracts."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--contract", contract]
    return subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("contract", sorted({contract for contract, _, _ in BREACHES}))
def test_wall_lets_through_what_it_should(contract, tmp_path):
    """Rooms that keep to themselves pass."""
    rooms(tmp_path)

    result = lint_imports(tmp_path, contract)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "file", "text"), BREACHES)
def test_wall_stops(contract, file, text, tmp_path):
    """A new module is inside its wall from its first line: the one import that is wrong makes the contract fail."""
    rooms(tmp_path)
    (tmp_path / file).write_text(text)

    result = lint_imports(tmp_path, contract)

    assert result.returncode == 1
    assert "BROKEN" in result.stdout


def test_every_wall_is_seen_to_fail():
    """A contract without a breach above is a contract nobody has seen fail."""
    contracts = {contract["id"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}

    assert contracts == {contract for contract, _, _ in BREACHES}
