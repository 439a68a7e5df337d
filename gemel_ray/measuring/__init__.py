"""gemel-ray bench: the speed of linking on this machine, and what limits it.

speed.py: the engine alone (engine.py), every stage alone (alone.py), the job (job.py), and the bottleneck;
host.py: the same with a language model that costs almost nothing; trees.py: large knowledge bases; scale.py,
flow.py: the cost of a mention as the input grows. All return figures with the machine and the sizes measured.
"""
