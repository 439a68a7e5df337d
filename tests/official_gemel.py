"""What GEMEL's code computes, said again in few lines on Hugging Face: nothing of gemel_ray is used.

A restatement for the tests to hold the engine against (paper, sections 3.1 to 3.4; the official
utils.py, model.py and infe.py say the same): cosines by scikit-learn, order by numpy's default sort, prompts
as embeddings piece by piece, a dictionary as prefix tree, generate with five beams or greedily.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity

NEW_TOKENS = 32


@dataclass
class Official:
    """Models in float32 and the data files' content; `features` by key, `embeddings` [train, width]."""

    lm: Any
    tokenizer: Any
    simcse: Any
    simcse_tokenizer: Any
    weight: torch.Tensor
    bias: torch.Tensor
    prefix: int
    train: list[dict[str, Any]]  # without those that are NIL
    embeddings: np.ndarray
    features: dict[str, np.ndarray]
    tree: dict[int, Any]

    def demonstrations(self, item: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """Most similar last."""
        if not count:
            return []
        asked = self.simcse_tokenizer(item["mention"], truncation=True, return_tensors="pt")
        with torch.no_grad():
            query = self.simcse(**asked).pooler_output.numpy()
        order = np.argsort(cosine_similarity(self.embeddings, query).squeeze(-1))
        return [self.train[i] for i in order[-count:]]

    def embedded(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, return_tensors="pt").input_ids[0, 1:]  # without BOS
        return self.lm.get_input_embeddings()(ids)

    def prompt(self, item: dict[str, Any], count: int) -> torch.Tensor:
        """Embeddings [tokens, width]."""
        pieces = []
        for shown in [*self.demonstrations(item, count), item]:
            feature = torch.tensor(self.features[picture(shown)], dtype=torch.float32)
            pieces.append((self.weight @ feature + self.bias).view(self.prefix, -1))
            asked = f"[Text]{shown['text']}\n[Question]What does {shown['mention']} mentioned in the text"
            asked += " refer to?\n[Answer]"
            pieces.append(self.embedded(asked if shown is item else f"{asked}{shown['target']}\n"))
        return torch.cat(pieces)

    def allowed(self, ids: list[int]) -> list[int]:
        node = next(iter(self.tree.values()))
        for token in ids:
            node = node.get(token, {})
        return list(node) or [self.tokenizer.eos_token_id]

    def answer(self, item: dict[str, Any], count: int, beams: int) -> tuple[str, float, int]:
        """Best name, its score (the mean of its tokens' log-probabilities), and the prompt's length."""
        prompt = self.prompt(item, count)
        with torch.no_grad():
            out = self.lm.generate(
                inputs_embeds=prompt[None],
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                num_beams=beams,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                length_penalty=1.0,
                prefix_allowed_tokens_fn=lambda _, ids: self.allowed(ids.tolist()),
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
            )
        ids = out.sequences[0].tolist()
        ids = ids[: ids.index(self.tokenizer.eos_token_id) + 1]
        name = self.tokenizer.decode(ids, skip_special_tokens=True).strip(" ")
        if beams > 1:
            return name, out.sequences_scores[0].item(), len(prompt)
        steps = [step[0].log_softmax(-1)[token].item() for step, token in zip(out.logits, ids, strict=True)]
        return name, sum(steps) / len(ids), len(prompt)

    def loss(self, item: dict[str, Any], count: int) -> float:
        """Of one training item: the mean over its target's tokens and EOS."""
        prompt = self.prompt(item, count)
        target = self.tokenizer(item["target"] + self.tokenizer.eos_token, return_tensors="pt").input_ids[
            0, 1:
        ]
        whole = torch.cat([prompt, self.lm.get_input_embeddings()(target)])
        labels = torch.cat([torch.full((len(prompt),), -100), target])
        with torch.no_grad():
            return self.lm(inputs_embeds=whole[None], labels=labels[None]).loss.item()


def picture(item: dict[str, Any]) -> str:
    key: str = item["img_name"] if "img_name" in item else item["img_url"]
    return key
