"""How many machines, hours and how much money a job takes, before anything is started.

rates.py says what one machine does, measured or scaled from figures.py; cost.py what many do, in closed form;
simulation.py lets the same machines run, fail and lag behind, block by block, to hold it against.
"""
