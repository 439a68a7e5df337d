"""A workspace with a random language model of a given shape.

The model has the tokens of the workspace's language model, so everything else is unchanged: the tree, the
demonstrations, the pictures. A model of two layers costs almost nothing: with it, everything except the
language model is measured. One of 7 billion weights shows the cost of such a model here, without its weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace, revisions
from gemel_ray.measuring.processes import in_new_process
from gemel_ray.models.mapper import FeatureMapper

_POSITIONS = 8192


class Shape(NamedTuple):
    """The shape of a Llama model. `tied`: the output weights are the input embeddings."""

    width: int
    inner: int
    layers: int
    heads: int
    tied: bool


ShapeName = Literal["two-layers", "7b"]
SHAPES: dict[ShapeName, Shape] = {
    "two-layers": Shape(64, 128, 2, 2, tied=True),
    "7b": Shape(4096, 11_008, 32, 32, tied=False),  # Llama 2's, 0.5 MiB of cache per token
}


def with_random_model(workspace: Workspace, output: Path, shape: ShapeName = "two-layers") -> Path:
    """Make a workspace with the same knowledge and such a model in `output`, replacing a former one."""
    folder = output / shape
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # In a process of its own, which leaves the GPU's memory.
    model = in_new_process(_model, workspace.language_model, folder / "model", SHAPES[shape])
    for path in workspace.inside.iterdir():
        if path.name not in ("workspace.json", "mapper.safetensors", "versions", "cache", "training"):
            (folder / path.name).symlink_to(path.resolve())
    of = workspace.facts.get("vectors", versions.FIRST)
    vectors = versions.folder(workspace.folder, of) / "vectors"
    if vectors.exists() and not (folder / "vectors").exists():
        (folder / "vectors").symlink_to(vectors.resolve())
    if workspace.prefix:
        mapper, _ = FeatureMapper.load(workspace.folder / "mapper.safetensors")
        width = SHAPES[shape].width
        FeatureMapper(mapper.linear.in_features, mapper.prefix, width).save(folder / "mapper.safetensors")
    facts = workspace.facts | {"vectors": versions.FIRST}
    facts["models"] = facts["models"] | {"language": str(model)}
    facts["revisions"] = facts["revisions"] | {"language": revisions({"language": str(model)})["language"]}
    facts["settings"] = facts["settings"] | {
        "models": facts["settings"].get("models", {}) | {"language": str(model)}
    }
    (folder / "workspace.json").write_text(json.dumps(facts, indent=1))
    return folder


def _model(like: str, folder: Path, shape: Shape) -> Path:
    """Make a model with the tokenizer and the vocabulary of the language model `like`. It is made on a GPU if
    there is one: a large model takes seconds there, and minutes on a CPU."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    there = AutoConfig.from_pretrained(like)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=there.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=shape.tied,
        bos_token_id=there.bos_token_id,
        eos_token_id=there.eos_token_id,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder
