"""Mutants: the service with one thing broken on purpose, and the test that notices: `python -m tests.mutants`.

Each is a change of text in a copy of the sources. The named test passes on the copy as it is and fails on the mutant;
what survives is a promise that nobody watches.
"""
