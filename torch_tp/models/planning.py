"""Which parameters of a model may be sharded, derived from what the model computes and never from names.

A run of the model on tensors without data is recorded as a graph (`capture`). One pass over the graph says of every
value how it is sharded, if some dimension of some parameter is (`sharding`, by the table in `operators`); another one
says whose gradient must be summed (`gradients`). Parameters whose shards meet are sharded together. Such a chain is
proven if every sharded value ends in a product that sums over it, and a run with the shapes of one rank does the same
(`compare`). Everything else stays replicated, with the reason.
"""

from torch_tp.models.capture import Example
from torch_tp.models.chains import Chain, Slice
from torch_tp.models.failures import Unfollowable
from torch_tp.models.proof import Derived, derive
from torch_tp.models.trials import resize

__all__ = ["Chain", "Derived", "Example", "Slice", "Unfollowable", "derive", "resize"]
