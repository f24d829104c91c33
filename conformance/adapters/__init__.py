"""Adapters: the seam between the suite and an implementation under test.

The rules. Cases go in, Observations come out; the suite knows nothing else of an implementation. An adapter is named
`NAME` (one of ours), `package.module:Class` or `path/to/file.py:Class`, and is imported where it runs: a framework only
ever inside the ranks. It declines a case by returning a reason before anything runs; what it declines is reported as
unsupported, never as passed. What it defines otherwise it declares as data. It never judges, prints or skips.

For a PyTorch layer derive from `conformance.adapters.pytorch.TorchAdapter`, which does everything but build the layer.
Anything else implements `Adapter` below.
"""
