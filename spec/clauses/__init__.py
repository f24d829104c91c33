"""Every clause of the contract; importing this package fills the register, in the order of causes.

Facts that a Step may carry, by name; a clause that finds none of its facts does not judge:

    pair                the layer returned a tuple of two
    returned            what it returned instead, where that is neither a tensor nor such a tuple
    bias_is_parameter   the returned bias is the layer's own parameter
    requires_grad       the output requires a gradient
    inference           the output is an inference tensor
    nodes               names of the autograd nodes between output and leaves, sorted
    storage_bytes       bytes of each parameter's storage, by name
    random_state        a digest of the random state after construction
    keys                the state dict's keys, sorted
    loud                for each wrong state dict (missing, unexpected, shape): whether loading it raised
    graphs              how many graphs a compiled forward needed
"""

from spec.clauses import ranks  # noqa: I001  (the order of imports is the order of causes)
from spec.clauses import refusals
from spec.clauses import groups
from spec.clauses import purity
from spec.clauses import parameters
from spec.clauses import functions
from spec.clauses import pair
from spec.clauses import fused
from spec.clauses import forward
from spec.clauses import backward
from spec.clauses import precision
from spec.clauses import procedures
from spec.clauses import instances
from spec.clauses import lifecycle
from spec.clauses import one_rank
from spec.clauses import collectives

__all__ = [
    "backward",
    "collectives",
    "forward",
    "functions",
    "fused",
    "groups",
    "instances",
    "lifecycle",
    "one_rank",
    "pair",
    "parameters",
    "precision",
    "procedures",
    "purity",
    "ranks",
    "refusals",
]
