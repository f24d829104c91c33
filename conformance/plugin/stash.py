"""What the plugin keeps in pytest's configuration; in an xdist worker the suite alone."""

from __future__ import annotations

import pytest

from conformance.reporting.session.collect import Collector
from conformance.reporting.session.reporter import Reporter
from conformance.suite import Suite

SUITE = pytest.StashKey[Suite]()
COLLECTOR = pytest.StashKey[Collector]()
REPORTER = pytest.StashKey[Reporter]()
