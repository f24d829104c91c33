"""Which parameters of a model may be cut, derived from what the model computes and never from names.

A run of the model on tensors without data is followed operation by operation. Where a dimension of a parameter is cut
over P ranks, every value computed from it is cut in one of its dimensions, is a sum of which each rank has a term, or
it cannot be said what it is. Parameters whose cuts meet are cut together. Such a chain is proven if each cut value ends
in a product that sums over the cut: the first are column-parallel, the last row-parallel. Everything else stays whole,
with the reason.
"""

from torch_tp.models.chains import Chain, Region, Slice
from torch_tp.models.proof import Derived, derive, local_shapes, resize

__all__ = ["Chain", "Derived", "Region", "Slice", "derive", "local_shapes", "resize"]
