"""A run as a record: what `--report` writes, and what `python -m conformance report` reads and adds up.

All of it is frozen data, as JSON by `plain`. A matrix cell has one verdict, for the page, for the closing table and for
committed results alike.
"""

from conformance.reporting.record.failure import DiagnosisText, Failure, KnownReason, Sighting, ViolationText
from conformance.reporting.record.report import (
    FILE,
    FORMAT,
    ClauseText,
    Report,
    SuiteVersion,
    new_report,
    suite_version,
)
from conformance.reporting.record.run import (
    Count,
    Coverage,
    Declined,
    Implementation,
    ItemsRun,
    Run,
    RunOptions,
    missing,
)
from conformance.reporting.record.verdict import VERDICTS, Verdict, verdict

__all__ = [
    "FILE",
    "FORMAT",
    "VERDICTS",
    "ClauseText",
    "Count",
    "Coverage",
    "Declined",
    "DiagnosisText",
    "Failure",
    "Implementation",
    "ItemsRun",
    "KnownReason",
    "Report",
    "Run",
    "RunOptions",
    "Sighting",
    "SuiteVersion",
    "Verdict",
    "ViolationText",
    "missing",
    "new_report",
    "suite_version",
    "verdict",
]
