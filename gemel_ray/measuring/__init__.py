"""gemel-ray bench: what the whole reaches on this machine, beside what it is held against.

speed.py: the engine alone (engine.py), every stage alone (alone.py), the job (job.py), and what holds them
up; host.py: the same with next to no language model; trees.py: large knowledge bases; scale.py, flow.py:
cost a mention as the input grows. All print what they measured, on what, against what.
"""
