"""The executable contract of tensor-parallel layers: cases, placements, clauses, bounds, and a JAX reference as truth.

This room knows NumPy alone (`spec.reference` also JAX) and no implementation: it says what each rank must hold,
compute, communicate and refuse, and judges what an implementation was seen to do.
"""

from spec import clauses as clauses
from spec.case import Case, CaseSyntaxError
from spec.contract import Agreement, Budget, agreement
from spec.laws import LAWS, Law, Measured, broken
from spec.observation import Array, Collective, Observation, Raised, Step
from spec.placements import Edge, Partial, Placement, Replicated, Sharded
from spec.register import REGISTER, Clause, ContractViolation, Finding, Violation, applicable, judge
from spec.semantics import STANDARD, Semantics, normal
from spec.truth import Truth, Values
from spec.values import Inputs, amplitude, inputs

__all__ = [
    "LAWS",
    "REGISTER",
    "STANDARD",
    "Agreement",
    "Array",
    "Budget",
    "Case",
    "CaseSyntaxError",
    "Clause",
    "Collective",
    "ContractViolation",
    "Edge",
    "Finding",
    "Inputs",
    "Law",
    "Measured",
    "Observation",
    "Partial",
    "Placement",
    "Raised",
    "Replicated",
    "Semantics",
    "Sharded",
    "Step",
    "Truth",
    "Values",
    "Violation",
    "agreement",
    "amplitude",
    "applicable",
    "broken",
    "inputs",
    "judge",
    "normal",
]
