"""What is wrong with a data set, before hours are spent on it: reported row by row, nothing is changed.

    found = check(files, Scope(train=[...], entities="kb.jsonl", images="pictures"), say)

Knows nothing of workspaces and models; reads as link does, through `readers`.
"""

from gemel_ray.checking.check import Scope, check
from gemel_ray.checking.findings import Findings

__all__ = ["Findings", "Scope", "check"]
