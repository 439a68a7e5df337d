"""gemel-ray bench: what the whole reaches on this machine, beside what it is held against.

speed.py: the job, the engine's raw rate, the reference loop and every stage; trees.py: large knowledge
bases; scale.py: cost a mention as the input grows. All print what they measured, on what, against what.
"""
