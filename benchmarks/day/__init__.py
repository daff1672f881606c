"""The parts of ``benchmarks/gpu_day.py``: every figure of goals G1 to G8 on a GPU that one has for minutes.

The command's own process (:mod:`~benchmarks.day.runner`) imports the standard library only. It starts one
process per stage, with a time limit. A stage (:mod:`~benchmarks.day.session`) measures windows and writes a
line of JSON for each (:mod:`~benchmarks.day.lines`), from which :mod:`~benchmarks.day.table` makes the table.
"""
