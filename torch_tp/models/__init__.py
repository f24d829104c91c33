"""The parallelisation of whole models: what a model computes, which parameters may be sharded, and the changes."""
