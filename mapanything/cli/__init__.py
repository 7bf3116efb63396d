"""Option tables, one per command, from which Invoke's tasks (tasks.py) and the tools' command lines are both built.

Only the standard library is imported in this room: `./invoke --list` answers at once, also where no environment is made yet.
"""
