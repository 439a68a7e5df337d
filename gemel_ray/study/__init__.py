"""The paper's ablations in one command: many small jobs on the same mentions, one table.

A *cell* is one way to link: settings that override the configuration, and a *variant* of the documents
(pictures shuffled, typos, ...). Each cell is an ordinary offline job with a separate output folder. So a
stopped study continues where it was, and cells with equal settings and variant are run once.
"""

from gemel_ray.study.cells import GROUPS
from gemel_ray.study.run import study

__all__ = ["GROUPS", "study"]
