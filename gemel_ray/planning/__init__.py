"""Estimates the machines, hours and money of a job before it is started.

rates.py has the rates of one machine, measured or scaled from figures.py; cost.py computes what many do, in
closed form; simulation.py runs the same machines, with failures and delays, block by block, to check it.
"""
