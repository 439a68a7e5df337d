"""gemel-ray import-gemel."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemel_ray.arguments import Parser, folder
from gemel_ray.commands import configured, say


def add(verb: Parser) -> None:
    """Make a WORKSPACE from the files that GEMEL's authors released.

    FOLDER holds train.json (and dev.json and test.json, if any), one *.hdf5 of pictures' features, one
    prefix_tree*.pkl and one *mention_embeddings*.pkl. The checkpoint's name gives prefix length and number of
    demonstrations (..._linear_4token_16examples.pkl). Pickles are read by a reader that builds only plain
    containers, numbers and arrays. The workspace has the paper's settings; --set on link overrides them.

      gemel-ray import-gemel data/wikidiverse --output my-workspace \\
          --checkpoint opt-6.7b_wikidiverse_linear_4token_16examples_82_77.pkl \\
          --language-model facebook/opt-6.7b --mention-encoder princeton-nlp/sup-simcse-roberta-large
      gemel-ray link data/wikidiverse/test.json --workspace my-workspace --output linked
    """
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="folder of GEMEL's data files")
    verb.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help="checkpoint of the linear mapper"
    )
    verb.add_argument(
        "--language-model", required=True, metavar="PATH", help="language model: folder or hub name"
    )
    verb.add_argument(
        "--mention-encoder", required=True, metavar="PATH", help="SimCSE model: folder or hub name"
    )
    verb.add_argument("--output", required=True, type=folder, metavar="WORKSPACE", help="folder to create")
    verb.add_argument("--replace", action="store_true", help="replace an existing workspace")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.gemel.importing import import_gemel

    import_gemel(
        configured(options, {}),
        options.folder,
        options.checkpoint,
        options.language_model,
        options.mention_encoder,
        options.output,
        say,
        replacing=options.replace,
    )
    print(options.output)
    return 0
