"""A small GEMEL data folder with its models, made of the starter's captions: every file in the official form.

The models are tiny and random, but of the real kinds: an OPT or a Llama with a tokenizer trained on the
captions, a RoBERTa as SimCSE.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import torch
from files import DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

FEATURE, WIDTH, PREFIX = 24, 64, 4
TRAIN, TEST = 60, 10


def mentions(file: str, count: int) -> list[dict[str, Any]]:
    """Lines in the official form, their pictures only keys."""
    ids = {e["name"]: e["id"] for e in map(json.loads, (DATA / "entities.jsonl").read_text().splitlines())}
    lines = []
    for row in pq.read_table(DATA / file, columns=["id", "text", "mentions"]).slice(0, count).to_pylist():
        mention = row["mentions"][0]
        text = row["text"][mention["start"] : mention["end"]]
        lines.append(
            {
                "id": row["id"],
                "text": row["text"],
                "mention": text,
                "target": mention["target"],
                "golden": ids[mention["target"]],
                "img_url": f"https://pictures.example/{row['id']}.jpg",
            }
        )
    return lines


def tokenizer(texts: list[str], specials: list[str], begin: str, space: bool) -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    )
    bare.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, bare.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token=begin,
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def language_model(kind: str, folder: Path, texts: list[str]) -> tuple[Any, Any]:
    """A tiny OPT (</s> begins and ends a text, as OPT has it) or Llama (<s> begins it)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "eos_token_id": 2}
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "opt":
        words = tokenizer(texts, special, "</s>", space=False)
        lm: Any = OPTForCausalLM(
            OPTConfig(
                vocab_size=len(words),
                ffn_dim=128,
                word_embed_proj_dim=WIDTH,
                max_position_embeddings=1024,
                init_std=0.3,
                bos_token_id=2,
                **ids,
                **sizes,
            )
        )
    else:
        words = tokenizer(texts, special, "<s>", space=True)
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(words),
                intermediate_size=128,
                max_position_embeddings=1024,
                initializer_range=0.3,
                bos_token_id=0,
                **ids,
                **sizes,
            )
        )
    lm = lm.float().eval()
    lm.save_pretrained(folder)
    words.save_pretrained(folder)
    return lm, words


def simcse(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    torch.manual_seed(1)
    words = tokenizer(texts, ["<s>", "<pad>", "</s>", "<unk>"], "<s>", space=False)
    encoder = RobertaModel(
        RobertaConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=130,
            initializer_range=0.2,
            pad_token_id=1,
        )
    ).eval()
    encoder.save_pretrained(folder)
    words.save_pretrained(folder)
    return encoder, words


def nested(names: list[list[int]]) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for ids in names:
        node = root
        for token in ids:
            node = node.setdefault(token, {})
    return root


def write(kind: str, folder: Path) -> dict[str, Any]:
    """Write folder/{data,lm,simcse,checkpoint}; returns what an `Official` is made of."""
    train, test = mentions("train.parquet", TRAIN), mentions("test.parquet", TEST)
    names = sorted({json.loads(line)["name"] for line in (DATA / "entities.jsonl").read_text().splitlines()})
    texts = [*(line["text"] for line in train), *names]
    lm, words = language_model(kind, folder / "lm", texts)
    encoder, encoder_words = simcse(folder / "simcse", texts)
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    features = {m["img_url"]: rng.normal(size=FEATURE).astype(np.float32) for m in [*train, *test]}
    with h5py.File(data / "clip_vit_large_patch14_1024.hdf5", "w") as file:
        for key, feature in features.items():
            file[key] = feature
    nil = train[7] | {"golden": "NIL"}
    for name, lines in (("train", [*train[:30], nil, *train[30:]]), ("test", test)):
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    tree = nested([[*words(name).input_ids, words.eos_token_id] for name in names])
    (data / f"prefix_tree_{kind}.pkl").write_bytes(pickle.dumps(tree))
    with torch.no_grad():  # one at a time: equal mentions are equal to the bit
        vectors = [encoder(**encoder_words(m["mention"], return_tensors="pt")).pooler_output for m in train]
    embeddings = torch.cat(vectors).numpy()
    (data / "SimCSE_train_mention_embeddings.pkl").write_bytes(pickle.dumps(embeddings))
    linear = torch.nn.Linear(FEATURE, PREFIX * WIDTH, dtype=torch.float16)
    torch.save(linear.state_dict(), folder / f"tiny_{kind}_linear_{PREFIX}token_4examples_12_34.pkl")
    return {
        "lm": lm,
        "tokenizer": words,
        "simcse": encoder,
        "simcse_tokenizer": encoder_words,
        "weight": linear.weight.detach().float(),
        "bias": linear.bias.detach().float(),
        "prefix": PREFIX,
        "train": train,
        "embeddings": embeddings,
        "features": features,
        "tree": tree,
    }


def importing(folder: Path, output: Path) -> list[str]:
    """Arguments of import-gemel for what `write` wrote."""
    checkpoint = next(folder.glob("*examples*.pkl"))
    return [
        *("import-gemel", str(folder / "data"), "--checkpoint", str(checkpoint)),
        *("--language-model", str(folder / "lm"), "--mention-encoder", str(folder / "simcse")),
        *("--output", str(output)),
    ]
