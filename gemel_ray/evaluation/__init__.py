"""Links against gold: figures with intervals, breakdowns, calibration, a baseline, two runs compared.

A mention is right when the linked entity's name is the target's, letter for letter (the paper's exact
match). One that is missing from the links, an error or NIL counts as wrong. Mentions without a target are
left out; those whose gold is NIL count in the figures that say so.
"""

from gemel_ray.evaluation.comparison import Comparison, compare
from gemel_ray.evaluation.evaluate import Evaluation, evaluate
from gemel_ray.evaluation.judged import Judged, gold_mentions
from gemel_ray.evaluation.known import Known, known

__all__ = ["Comparison", "Evaluation", "Judged", "Known", "compare", "evaluate", "gold_mentions", "known"]
