"""Mention strings to unit vectors, by any Hugging Face or sentence-transformers encoder.

Reads what a sentence-transformers folder states about itself (modules.json,
1_Pooling/config.json, sentence_bert_config.json) without that package; a plain
encoder such as SimCSE answers with its pooler. Knows nothing of contexts, of
images or of the index. Prompts that some models want before a text are the
caller's. Importing it is cheap: transformers is loaded by the first encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gemel_ray.errors import Mistake
from gemel_ray.models.clip import Vectors, as_array, torch_device, unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["auto", "pooler", "mean", "cls"]

DTYPES = ("float32", "bfloat16", "float16")
TEXTS_AT_ONCE = 128
LONGEST = 512  # tokens, where the model states no length


class MentionEncoder:
    """A frozen text encoder.

    name: a folder or a Hugging Face repository. pooling: `auto` is what the model
    states, else its trained pooler, else the mean over its tokens.
    dtype: float32, bfloat16 or float16. device: auto, cpu, cuda, cuda:1...
    Raises ValueError for a pooling or a last layer that is not computed here,
    and for weights that lack a part of the model.
    """

    def __init__(
        self, name: str, *, pooling: Pooling = "auto", dtype: str = "float32", device: str = "auto"
    ) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if dtype not in DTYPES:
            raise Mistake(f"the mention encoder's dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
        self.name = name
        subfolder, stated = stated_layers(name)
        model, loaded = AutoModel.from_pretrained(
            name, subfolder=subfolder, dtype=getattr(torch, dtype), output_loading_info=True
        )
        lacking = sorted(loaded["missing_keys"])
        if others := [key for key in lacking if not key.startswith("pooler.")]:
            raise Mistake(f"the weights of {name} lack {len(others)} parts, the first {others[0]}")
        has_pooler = getattr(model, "pooler", None) is not None and not lacking
        self.pooling = chosen_pooling(name, pooling, stated, has_pooler)
        self._device = torch_device(device)
        self._model: Any = model.to(self._device).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
        self._longest = longest_input(name, subfolder, model, self._tokenizer)
        self.width = int(model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Texts to float32 [n, width] of unit length; equal texts are computed once.

        Texts longer than the model takes are cut at the end.
        """
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.empty((0, self.width), np.float32)
        tokens = self._tokenizer(unique, truncation=True, max_length=self._longest)["input_ids"]
        by_length = sorted(range(len(unique)), key=lambda i: len(tokens[i]))
        vectors = np.empty((len(unique), self.width), np.float32)
        for start in range(0, len(unique), TEXTS_AT_ONCE):
            rows = by_length[start : start + TEXTS_AT_ONCE]
            vectors[rows] = self._forward([tokens[i] for i in rows])
        position = {text: i for i, text in enumerate(unique)}
        return unit(vectors)[[position[text] for text in texts]]

    def _forward(self, tokens: list[list[int]]) -> Vectors:
        """Token ids, rows of differing length, to pooled float32 [n, width]."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(row) for row in tokens]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            answer = self._model(input_ids=ids, attention_mask=mask)
            if self.pooling == "pooler":
                return as_array(answer.pooler_output)
            states = answer.last_hidden_state.float()
            if self.pooling == "cls":
                return as_array(states[:, 0])
            weights = mask[:, :, None].float()
            return as_array((states * weights).sum(1) / weights.sum(1).clamp(min=1))


def chosen_pooling(name: str, wanted: Pooling, stated: str | None, has_pooler: bool) -> str:
    """The pooling to compute; raises ValueError if the model or this file cannot."""
    usual = stated or ("pooler" if has_pooler else "mean")
    pooling = usual if wanted == "auto" else wanted
    if pooling not in ("pooler", "mean", "cls"):
        raise Mistake(f"{name} wants the pooling {pooling!r}; only pooler, mean and cls are computed")
    if pooling == "pooler" and not has_pooler:
        raise Mistake(f"{name} has no trained pooler: choose the pooling mean or cls")
    return pooling


def stated_layers(name: str) -> tuple[str, str | None]:
    """The subfolder that holds the transformer, and the pooling, as the model states them."""
    modules = read_json(name, "modules.json")
    if modules is None:
        settings = read_json(name, "1_Pooling/config.json")
        return "", None if settings is None else pooling_mode(settings)
    subfolder, pooling = "", None
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Transformer":
            subfolder = module["path"]
        elif kind == "Pooling":
            pooling = pooling_mode(read_json(name, f"{module['path']}/config.json") or {})
        elif kind != "Normalize":
            raise Mistake(f"{name} ends in a layer {kind}, which is not computed here")
    return subfolder, pooling


def pooling_mode(settings: dict[str, Any]) -> str:
    """A pooling's name, from either form of its configuration."""
    modes = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, on in settings.items()
        if key.startswith("pooling_mode_") and on
    ]
    return modes if isinstance(modes, str) else " + ".join(modes) or "mean"


def longest_input(
    name: str, subfolder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """How many tokens the model takes: the smallest limit of its parts."""
    settings = read_json(name, "/".join(filter(None, [subfolder, "sentence_bert_config.json"]))) or {}
    stated = [settings.get("max_seq_length"), tokenizer.model_max_length]
    if places := getattr(model.config, "max_position_embeddings", None):
        # RoBERTa counts positions from after its padding index: two of its 514 are never used.
        positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        padding = getattr(positions, "padding_idx", None)
        stated.append(places if padding is None else places - padding - 1)
    return int(min([n for n in stated if n and n < 10**6], default=LONGEST))


def read_json(name: str, file: str) -> Any:
    """A JSON file of a folder or a Hugging Face repository; None where it has none."""
    from transformers.utils import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
