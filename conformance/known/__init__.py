"""Known deviations: what an implementation is known to do otherwise, one TOML file each, strict in both directions."""

from conformance.known.deviations import BadKnownFile, Deviation, Known, default_file

__all__ = ["BadKnownFile", "Deviation", "Known", "default_file"]
