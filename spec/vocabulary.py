"""The words of the contract: layers, dtypes, layouts, kinds of values, and every procedure with what it does."""

from typing import Final

# Column-parallel layers of several parts; an implementation may do without them.
FUSED: Final = ("merged", "qkv")
# The linear layers that are cut along their output features.
COLUMN_LIKE: Final = ("column", *FUSED)
LINEAR: Final = ("column", "row", *FUSED)
COMPOSED: Final = ("pair",)
FUNCTIONS: Final = ("copy", "reduce", "gather", "scatter")
LAYERS: Final = LINEAR + COMPOSED + FUNCTIONS
DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
AUTOCAST: Final = ("", "bfloat16", "float16")
LAYOUTS: Final = ("contiguous", "transposed", "strided", "expanded", "offset")
VALUES: Final = ("exact", "small", "gaussian", "positive", "cancel", "subnormal")
# The kinds of which no sum rounds, in any order: what is computed of them must equal the truth.
EXACT: Final = frozenset({"exact", "small", "subnormal"})
GROUPS: Final = ("neighbouring", "interleaved")

PROCEDURES: Final = {
    "run": "forward and backward, once",
    "precision": "forward and backward on real values, judged by the derived bound",
    "twice": "the same forward and backward again, with fresh gradients: the same bits",
    "retain": "two backwards through one graph: the gradients double",
    "accumulate": "two forwards and backwards on different data: the gradients add up",
    "pipeline": "two forwards of one layer on different data, then both backwards: the gradients add up",
    "update": "the same layer again after its parameters were overwritten in place",
    "interleave": "two layers a, b of equal sizes: forward a, forward b, backward a, backward b",
    "delay": "the same again while every rank waits a different time around each collective: the same bits",
    "no-grad": "forward under torch.no_grad or its like",
    "inference": "forward under torch.inference_mode or its like",
    "init": "a layer that draws its own initial values, then draws them again",
    "state-dict": "save, load into another layer, and refuse what does not fit",
    "deepcopy": "a deep copy behaves as its original",
    "pickle": "a layer that was pickled and read back behaves as its original",
    "functional-call": "the layer called with its parameters passed from outside",
    "checkpoint": "activation checkpointing, the non-reentrant variant",
    "checkpoint-reentrant": "activation checkpointing, the reentrant variant",
    "compile": "compiled as one graph, ahead-of-time autograd without code generation",
    "compile-inductor": "compiled as one graph, with code generation",
    "refuse": "a bad argument: the error, no collective, and the group afterwards",
}

# Procedures that compute no output to hold against a truth.
WITHOUT_VALUES: Final = frozenset({"init", "state-dict", "refuse"})
