"""Which linears of a model may be cut, derived from what the model computes and never from names.

A run of the model on tensors without data is followed operation by operation. Where the output features of a linear are
cut into P slices, every value computed from them is cut in one of its dimensions, or it cannot be said what it is. A
chain is proven if each cut value ends in the input of another linear: the first are column-parallel, the last
row-parallel. Everything else stays whole, with the reason.
"""

from torch_tp.planning.chains import Chain, Derived, derive, local_shapes

__all__ = ["Chain", "Derived", "derive", "local_shapes"]
