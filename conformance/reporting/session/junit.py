"""What a JUnit file says besides pytest's own: properties of each test and of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from _pytest.junitxml import xml_key  # pytest's own way in, the fixture record_testsuite_property, is not for plugins

from conformance.adapters.protocol import Declaration
from conformance.items import Item
from conformance.known import Deviation
from conformance.observers import Options
from conformance.reporting.record import suite_version
from conformance.suite import Suite
from spec import Case, ContractViolation

Properties = list[tuple[str, object]]


def test_properties(suite: Suite, item: pytest.Item, violations: Iterable[ContractViolation]) -> Properties:
    """What one test of the suite examined and found; nothing for another test."""
    callspec = getattr(item, "callspec", None)
    chosen = callspec.params.values() if callspec else ()
    subjects = [getattr(value, "case", value) for value in chosen if isinstance(value, (Item, Deviation))]
    if not subjects:
        return []
    subject: Item | Case = subjects[0]
    blamed = [(error.clause.name, str(error.evidence[0].case)) for error in violations if error.evidence]
    return [
        ("implementation", suite.declaration.name),
        ("world_size", max(subject.P, subject.world)),
        ("layer", subject.layer),
        ("procedure", subject.procedure),
        ("clauses_judged", " ".join(dict.fromkeys(name for name, _, _ in suite.tally.judged))),
        *((key, text) for pair in blamed for key, text in zip(("failing_clause", "case"), pair, strict=True)),
    ]


def suite_properties(declared: Declaration, options: Options) -> Mapping[str, str]:
    """What all tests examined, with what."""
    version = suite_version()
    return {
        "implementation": declared.name,
        **{f"version_{name}": str(text) for name, text in declared.versions.items()},
        "backend": options.backend,
        "device": options.device,
        "world_sizes": ",".join(map(str, options.world_sizes)),
        "suite_version": version.version,
        "contract": version.contract,
    }


def enter(config: pytest.Config, properties: Mapping[str, object]) -> None:
    """Put properties of the whole into the JUnit file, where one is written."""
    file = config.stash.get(xml_key, None)
    for name, value in properties.items() if file is not None else ():
        file.add_global_property(name, value)
