"""gemel-ray train."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, folder, refuse
from gemel_ray.commands import configured_for, say
from gemel_ray.errors import Mistake


def add(verb: Parser) -> None:
    """Train the feature mapper, which turns picture features into visual prefixes.

    Prompts are made as in link, but an example never demonstrates itself. The mapper with the best accuracy
    on the dev files goes into the workspace, unless the model is better without. If the training is killed,
    run the same command again to continue; other settings start over. WORKSPACE/training has the curve
    (curve.svg, curve.json, logs for TensorBoard). WORKSPACE/cache has the encoded pictures and texts, which
    another training reuses.

    With --joining nothing is trained but the weights by which the language model's answers are joined to the
    ranker's (generate.ranking, and generate.choice_weight with generate.rerank). They are learned on the dev
    files' mentions of which the ranker is not sure, and become settings of the workspace. Mentions that are
    examples of the workspace are left out.

      gemel-ray train --train train.parquet --dev dev.parquet --workspace my-workspace
      gemel-ray train --joining --dev dev.parquet --workspace my-workspace
    """
    verb.add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="FILE",
        help="solved documents with pictures, to train on",
    )
    verb.add_argument(
        "--dev",
        nargs="+",
        required=True,
        metavar="FILE",
        help="other solved documents, to choose the mapper by",
    )
    verb.add_argument(
        "--joining", action="store_true", help="learn only how language model and ranker are joined"
    )
    verb.add_argument("--workspace", required=True, type=folder, help="workspace that gemel-ray build made")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.readers import files
    from gemel_ray.training import learn, train

    if options.joining:
        refuse(options, ["--train"], "--joining learns on the dev files")
    elif not options.train:
        raise Mistake("--train is missing: the files to train on")
    config = configured_for(options.workspace, options)
    dev = files(options.dev, say)
    if options.joining:
        learn(config, dev, options.workspace, say)
    else:
        train(config, files(options.train, say), dev, options.workspace, say)
    return 0
