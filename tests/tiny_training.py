"""A workspace of a tiny language model, random and made here, with the starter's tokenizer and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from files import DATA
from transformers import LlamaConfig, LlamaForCausalLM

from gemel_ray.config import Config, load
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.starter.models import language_model
from gemel_ray.training import train

FEW = [
    "retrieve.demonstrations=1",
    "train.dtype=float32",
    "train.batch=6",
    "train.epochs=1",
    "train.evaluate_every=3",
    "train.decode_every=6",
    "train.dev_mentions=9",
    "train.learning_rate=0.01",
    "train.tokens=600",
]


def tiny_language_model(folder: Path, head: int = 8) -> Path:
    """Two layers of 4 heads, with weights large enough that its answers depend on its prompts. vLLM has no
    kernel for heads of less than 32."""
    made = LlamaConfig(
        vocab_size=49152,
        hidden_size=4 * head,
        intermediate_size=8 * head,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(made).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(language_model() / name, folder / name)
    return folder


def tiny_workspace(folder: Path) -> Path:
    """40 solved examples, in train.parquet, which are its demonstrations, too; 9 others in dev.parquet."""
    lm = tiny_language_model(folder / "lm")
    examples = pq.read_table(DATA / "train.parquet")
    pq.write_table(examples.slice(0, 40), folder / "train.parquet")
    pq.write_table(examples.slice(40, 9), folder / "dev.parquet")
    config = load(None, {}, [f"models.language={lm}"])
    train_file = [str(folder / "train.parquet")]
    build(config, str(DATA / "entities.jsonl"), train_file, folder / "workspace", lambda _: None)
    return folder / "workspace"


def configured(workspace: Path, *settings: str) -> Config:
    return load(None, read_facts(workspace)["settings"], [*FEW, *settings])


def trained(
    workspace: Path, *settings: str, say: Callable[[str], None] = lambda _: None, **files: str
) -> dict[str, Any]:
    beside = workspace.parent
    train_file = files.get("train", str(beside / "train.parquet"))
    dev_file = files.get("dev", str(beside / "dev.parquet"))
    return train(configured(workspace, *settings), [train_file], [dev_file], workspace, say)
