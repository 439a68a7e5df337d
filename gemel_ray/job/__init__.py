"""The offline job, except for Ray itself (offline.py): which documents a run takes, how a worker survives
failures, the output folder, the record of its progress, the report.
"""
