"""Races between claims, hooks and the management of keys, on a real PostgreSQL: `python -m tests.races`.

Workers (threads of several processes, each with a connection of its own) meet at a barrier and then do one thing each
to the keys and paths of that round; afterwards every round is judged by what the workers were told and by what the
tables hold.
"""
