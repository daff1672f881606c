"""Surroundings of a process. A job's script of a run with a warm process goes on there, before it imports more."""

from augbench.runtime.warm import hand_over

hand_over()
