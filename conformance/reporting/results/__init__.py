"""Committed results: one small JSON file per implementation, compared with a run, and the README's table made of them.

They hold what should change only if an implementation, the contract or what is known changes: no dates, no paths, no
tensors. Verdicts are compared; examples differ from seed to seed, so their numbers are not.
"""
