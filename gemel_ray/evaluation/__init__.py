"""Links compared with gold: figures with intervals, breakdowns, calibration, a baseline, a second run.

A link is right if the entity's name equals the target's (the paper's exact match). A mention that is missing
from the links, an error and NIL count as wrong. Mentions without a target are left out, except that those
whose gold is NIL count in the figures that say so.
"""

from gemel_ray.evaluation.comparison import Comparison, compare
from gemel_ray.evaluation.evaluate import Evaluation, evaluate
from gemel_ray.evaluation.judged import Judged, gold_mentions
from gemel_ray.evaluation.known import Known, known

__all__ = ["Comparison", "Evaluation", "Judged", "Known", "compare", "evaluate", "gold_mentions", "known"]
