"""A report read from its file, or a sentence that says why it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.reporting.record.plain import DoesNotFit, record_of
from conformance.reporting.record.report import FILE, FORMAT, Report, suite_version


class Unusable(ValueError):
    """A file, or a pair of them, that cannot be used; the text names it, what it has and what is needed."""


def read_report(path: str) -> Report:
    """The report in a file, or in a folder's report.json.

    Raises:
        Unusable: no such file, not whole, not a report, of another format, or of another contract.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    content = loaded(file)
    if not isinstance(content, dict) or "format" not in content:
        raise Unusable(f"{file}: this is no report: it has no format; `pytest conformance --report FOLDER` writes one")
    if content["format"] != FORMAT:
        raise Unusable(f"{file}: has format {content['format']!r}; format {FORMAT} is needed, that of this suite")
    try:
        report: Report = record_of(Report, content)
    except DoesNotFit as error:
        raise Unusable(f"{file}: this is no report of format {FORMAT}: {error}") from None
    has, needed = report.suite, suite_version()
    if has.contract != needed.contract:
        raise Unusable(
            f"{file}: was judged by contract {has.contract} (suite {has.version}); contract {needed.contract} is"
            f" needed (suite {needed.version}, this one), since verdicts of another one mean something else"
        )
    return report


def loaded(file: Path) -> Any:
    """The JSON in a file.

    Raises:
        Unusable: it cannot be read, or is not whole.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise Unusable(f"{file}: is no whole JSON file, as if it was cut short: {error}") from None
