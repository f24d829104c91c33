"""The folder that a report is written to."""

from __future__ import annotations

import os
from pathlib import Path

from conformance.reporting.page import write_page
from conformance.reporting.record import FILE, Report
from conformance.reporting.record.plain import write_json


class UnusableFolder(ValueError):
    """A path at which no report can be written; the text says why."""


def make_folder(flag: str, path: str) -> Path:
    """The folder, made if its parent is there.

    Raises:
        UnusableFolder: there is no parent, a file stands there, or it cannot be written to.
    """
    folder = Path(path).absolute()
    if not folder.parent.is_dir():
        raise UnusableFolder(f"{flag} {path}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise UnusableFolder(f"{flag} {path}: this is a file; give a folder, which is made if it is not there")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UnusableFolder(f"{flag} {path}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK):
        raise UnusableFolder(f"{flag} {path}: this folder cannot be written to")
    return folder


def forget_report(folder: Path) -> None:
    """Take an earlier run's report away, which one that is killed would leave as if it were its own."""
    for name in (FILE, "index.html", "junit.xml"):
        (folder / name).unlink(missing_ok=True)


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write the record and its page; returns the files."""
    write_json(folder / FILE, report)
    return [folder / FILE, write_page(folder, report)]
