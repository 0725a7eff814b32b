"""A model of the world around the service: encoders, hooks, a media server that fails, and people who change keys.

`actors.py` is the world, `oracle.py` what the service promises of it, `machine.py` draws what happens and judges.
`python -m tests.world` plays thousands of examples.
"""
