"""What is wrong with a failing case, in a plain sentence, as far as further runs and exact numbers can tell.

A diagnosis claims consistency and nothing more: the numbers of a named mistake are the numbers that were seen, on every
rank and in every element, in a case chosen to tell mistakes apart. Where nothing fits it says nothing.
"""

from conformance.diagnosis.diagnose import Diagnosis, Look, diagnose

__all__ = ["Diagnosis", "Look", "diagnose"]
