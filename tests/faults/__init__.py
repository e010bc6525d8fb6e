"""Fault injection on a small real deployment: jobs run while processes, Redis, S3 and the network break.

`python -m tests.faults --jobs 500 --faults 100 --seed 1` runs it. `checker.py` lists the promises it checks.
"""
