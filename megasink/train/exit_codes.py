"""How a rank's process ends, for launchers and batch scripts (docs/fault-tolerance.md)."""

FINISHED = 0
"""All of --train-iters are done."""
MISTAKE = 2
"""Something the user can mend; said in one line."""
STOPPED = 75
"""Stopped early on request (signal, time limit) with a checkpoint: start again with --auto-resume."""
BROKEN = 76
"""A rank hung or was lost: start again with --auto-resume, on other nodes if it happens again."""
DIVERGED = 77
"""Too many steps in a row, or all of the run, were not finite; starting again will not help."""
