"""What belongs to one run of the offline job, but for Ray itself (offline.py): which documents it takes, how
a worker lives through what happens to it, the output folder, the record of how far it is, the report.
"""
