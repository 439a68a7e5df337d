"""Training the feature mapper: CLIP and the language model are frozen, only the mapper learns (paper, 3.1).

Prompts come from the stages of the graph, so they are those of a linking job. The loss is on the query's
target and end-of-name token only. `train` is the entry point; `item_losses` is the loss alone.
"""

from gemel_ray.training.examples import Example
from gemel_ray.training.joining import learn
from gemel_ray.training.launch import train
from gemel_ray.training.losses import item_losses

__all__ = ["Example", "item_losses", "learn", "train"]
