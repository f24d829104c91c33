"""Whole models under the laws of `spec.laws`: who can parallelise a model is judged by what comes out.

The rules. The pytest process knows names alone (`items`) and judges; it loads no framework. In the ranks
`inside.serve` builds a model of the catalogue twice, hands one to the adapter, puts both through a procedure, and
compares them, in float64. How far they may lie apart is derived (`inside.rounding`), never chosen. An adapter takes
part by having a method `parallelize(model, group, example)`; `conformance.adapters.models` says what else it has then.

    python -m conformance.models replay llama-P2-model
    python -m conformance.models shares                     of published models, what lies in slices
"""
