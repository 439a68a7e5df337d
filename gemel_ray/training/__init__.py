"""Training the feature mapper: vision model and language model frozen, only the mapper learns (paper, 3.1).

Prompts come from the graph's own stages, so a training prompt is what link would ask; the loss is on the
query's target and end-of-name token only. `train` is the whole of it, `item_losses` the loss by itself.
"""

from gemel_ray.training.examples import Example
from gemel_ray.training.joining import learn
from gemel_ray.training.launch import train
from gemel_ray.training.losses import item_losses

__all__ = ["Example", "item_losses", "learn", "train"]
