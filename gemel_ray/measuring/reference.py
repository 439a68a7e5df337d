"""The reference loop: GEMEL as its authors run it, on the same models, prompts and names.

Hugging Face's generate, one mention at a time, the paper's number of beams, a prefix tree of Python
dictionaries used at every step (official infe.py and prefix_tree.py). It uses nothing of this project's
engine, and only what the official loop does for every mention is timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gemel_ray.config import Config
from gemel_ray.engine.work import Prompt
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.knowledge.workspace import Workspace


def rates(config: Config, folder: Path, prompts: Sequence[Prompt], rounds: int) -> list[float]:
    """The rate of linking these prompts of the workspace's mentions one after another, in each round."""
    workspace = Workspace.open(folder, config)
    generate = config.generate
    loop = Reference(workspace.language_model, generate.dtype, workspace.tree, generate.beams)
    return [loop.mentions_per_second(prompts) for _ in range(rounds)]


class Reference:
    """The model `language` in `dtype`, and the names of `tree` as nested dictionaries."""

    def __init__(self, language: str, dtype: str, tree: PrefixTree, beams: int) -> None:
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(language, dtype=getattr(torch, dtype))
        self._model.to(device).eval()
        self._beams, self._end, self._depth = beams, tree.end_token, tree.depth
        self._tree: dict[int, Any] = {}
        for path, _ in tree.names():
            node = self._tree
            for token in path:
                node = node.setdefault(token, {})

    def mentions_per_second(self, prompts: Sequence[Prompt]) -> float:
        """The rate of linking these mentions one after another."""
        began = time.perf_counter()
        for prompt in prompts:
            self._link(prompt)
        return len(prompts) / (time.perf_counter() - began)

    def _link(self, prompt: Prompt) -> list[int]:
        embeddings = prompt.embeddings[None].to(self._model.device)
        with torch.inference_mode():
            written = self._model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
                num_beams=self._beams,
                max_new_tokens=self._depth,
                do_sample=False,
                eos_token_id=self._end,
                pad_token_id=self._end,
                prefix_allowed_tokens_fn=lambda _, ids: self._allowed(ids.tolist()),
            )
        tokens: list[int] = written[0].tolist()
        return tokens

    def _allowed(self, ids: list[int]) -> list[int]:
        node = self._tree
        for token in ids:
            node = node.get(token, {})
        return list(node) or [self._end]
