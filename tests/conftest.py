"""Hypothesis in our own tests: the same examples on every run, so that a red test is red for everyone who runs it."""

from hypothesis import settings

# No deadline: the first example of a test may compile a JAX function or start ranks.
settings.register_profile("tests", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("tests")
