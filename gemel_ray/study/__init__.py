"""The paper's ablations on one command: many small jobs on the same mentions, one table.

A *cell* is one way to link: settings over the configuration, and a *variant* of the documents (pictures
shuffled, typos, ...). Each is an ordinary offline job in a folder of its own, so a study that was stopped
goes on where it was, and cells that are the same way are done once.
"""

from gemel_ray.study.cells import GROUPS
from gemel_ray.study.run import study

__all__ = ["GROUPS", "study"]
