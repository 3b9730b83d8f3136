"""`make torture`: faults by the hundred against the real program; figures go to docs/reliability.md.

A warm process has imported the training libraries and forks a child for each command, which runs `fastft.cli.main`: a
command then costs 2 s instead of 10. A share of the kills hits processes that are started from the shell.
"""
