"""The language model's tokenizer, without its template: pieces of text to token ids, never back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@lru_cache(maxsize=2)  # versions of a workspace that are open at once share one
def load_tokenizer(model: str) -> Tokenizer:
    """The language model's tokenizer. transformers, which takes 300 MiB, is loaded only if a model has no
    tokenizer.json and must be converted."""
    from tokenizers import Tokenizer

    file = Path(model) / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a text that spells them out is plain text
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text alone, without BOS."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def end_token(model: str, end_of_name: str) -> int:
    """The token of language model `model` that ends every name."""
    if end_of_name == "newline":
        return tokenize(load_tokenizer(model), ["\n"])[0][-1]
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(model).eos_token_id)


@lru_cache(maxsize=2)
def longest_context(model: str) -> int:
    """Tokens that language model `model` takes at most."""
    from transformers import AutoConfig

    return int(getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", 1 << 30))
