"""A workspace whose language model costs nearly nothing: random, two layers, made on the spot.

Its tokens are those of the workspace's own language model, so everything else is as it was: the tree, the
demonstrations, the pictures. What is measured with it is all but the language model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace, revisions
from gemel_ray.models.mapper import FeatureMapper

_WIDTH, _HEADS, _POSITIONS = 64, 2, 8192


def dressed(workspace: Workspace, output: Path) -> Path:
    """The folder of the same knowledge with such a model, in `output`; it is made anew each time."""
    folder = output / "two-layers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = _model(workspace.language_model, folder / "model")
    for path in workspace.inside.iterdir():
        if path.name not in ("workspace.json", "mapper.safetensors", "versions", "cache", "training"):
            (folder / path.name).symlink_to(path.resolve())
    of = workspace.facts.get("vectors", versions.FIRST)
    vectors = versions.folder(workspace.folder, of) / "vectors"
    if vectors.exists() and not (folder / "vectors").exists():
        (folder / "vectors").symlink_to(vectors.resolve())
    if workspace.sees:
        mapper, _ = FeatureMapper.load(workspace.folder / "mapper.safetensors")
        FeatureMapper(mapper.linear.in_features, mapper.prefix, _WIDTH).save(folder / "mapper.safetensors")
    facts = workspace.facts | {"vectors": versions.FIRST}
    facts["models"] = facts["models"] | {"language": str(model)}
    facts["revisions"] = facts["revisions"] | {"language": revisions({"language": str(model)})["language"]}
    facts["settings"] = facts["settings"] | {
        "models": facts["settings"].get("models", {}) | {"language": str(model)}
    }
    (folder / "workspace.json").write_text(json.dumps(facts, indent=1))
    return folder


def _model(like: str, folder: Path) -> Path:
    """With the tokenizer and the vocabulary of the language model `like`."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    there = AutoConfig.from_pretrained(like)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=there.vocab_size,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=there.bos_token_id,
        eos_token_id=there.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder
