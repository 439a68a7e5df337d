"""Trains the starter's small CLIP from scratch on pictures of the set's training brands.

`python -m gemel_ray.starter.train_clip [--output FOLDER] [--seed N] [--steps N]`
takes some minutes on two cores and writes a folder that open_clip loads:
`open_clip.create_model_and_transforms("local-dir:FOLDER")`, and likewise
`open_clip.get_tokenizer`. The brands held out of train.parquet are never drawn.
`python -m gemel_ray.starter.measure_clip` measures the result.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from gemel_ray.starter.brands import Brand, brands
from gemel_ray.starter.logos import DATA, SEED, held_out
from gemel_ray.starter.rendering import render

IMAGE_SIZE = 64
MEAN = STD = (0.5, 0.5, 0.5)
PAD, START, END = "<pad>", "<start>", "<end>"  # ids 0, 1, 2
VOCABULARY = 1024

CONFIG: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": [1, 2, 2, 1],
            "width": 16,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": 20,
            "vocab_size": VOCABULARY,
            "hf_tokenizer_name": "tokenizer.json",  # any name: open_clip reads the same folder
            "width": 64,
            "heads": 2,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": 2,
        },
    },
    "preprocess_cfg": {
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}

PROMPTS = (
    "a logo of {}", "the {} logo", "{}", "the app icon of {}", "a photo of the sign of {}",
)  # fmt: skip
RENDERINGS = 48  # drawn once for each brand; each batch shifts and tints them again
NAMES = 128  # different brands in a batch
VIEWS = 2  # pictures of each
SHIFT = 4  # pixels
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05


def main() -> None:
    """Train, and write the model's folder."""
    parser = argparse.ArgumentParser(description="Train the starter's CLIP.")
    parser.add_argument("--output", type=Path, default=DATA / "clip", help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=2, help="as many as there are idle cores")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    unseen = held_out(options.seed)
    seen = [brand for brand in brands() if brand not in unseen]
    write_configuration(options.output, [brand.name for brand in seen])
    model = train(options.output, seen, options.steps, np.random.default_rng([options.seed, 9]))
    weights = options.output / "open_clip_model.safetensors"
    save_file(half(model), weights)
    weights.chmod(0o644)  # safetensors makes it readable only for the owner


def write_configuration(folder: Path, names: list[str]) -> None:
    """The folder without its weights: open_clip's configuration and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    texts = [prompt.format(name) for name in names for prompt in PROMPTS]
    byte_pair_tokenizer(texts).save_pretrained(folder)


def byte_pair_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer: the 49,408 tokens of CLIP's would be larger than the model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END)


def train(folder: Path, seen: list[Brand], steps: int, rng: np.random.Generator) -> open_clip.CLIP:
    """Train a model of the folder's configuration."""
    began = time.monotonic()
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    model.visual.to(memory_format=torch.channels_last)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace((step + 1) / steps))
    pictures = drawn(seen, rng)
    print(f"drew {len(seen) * RENDERINGS} pictures in {time.monotonic() - began:.0f} s", flush=True)

    model.train()
    for step in range(1, steps + 1):
        chosen = rng.permutation(len(seen))[:NAMES]
        names = [PROMPTS[int(rng.integers(len(PROMPTS)))].format(seen[i].name) for i in chosen]
        loss = contrastive_loss(model, views(pictures, chosen, rng), tokenize(names))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return model.eval()


def pace(progress: float) -> float:
    """The learning rate's share of its peak: a short warm-up, then a cosine decay."""
    return min(progress / 0.05, 0.5 * (1 + math.cos(math.pi * progress)))


def drawn(seen: list[Brand], rng: np.random.Generator) -> Tensor:
    """Pictures as bytes: brand, rendering, channel, row, column."""
    pictures = torch.empty(len(seen), RENDERINGS, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    for i, brand in enumerate(seen):
        for j in range(RENDERINGS):
            # The resizing that open_clip's preprocessing does.
            small = render(brand, rng).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            pictures[i, j] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return pictures


def views(pictures: Tensor, chosen: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Pictures of the chosen brands, all of them twice in turn, shifted, tinted, with noise."""
    labels = torch.from_numpy(np.tile(chosen, VIEWS))
    images = pictures[labels, torch.from_numpy(rng.integers(0, RENDERINGS, len(labels)))] / 255
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    # One shift for each run of pictures: cheaper than one for each picture, and as good.
    runs = []
    for run in padded.chunk(16):
        top, left = rng.integers(0, 2 * SHIFT + 1, 2)
        runs.append(run[:, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE])
    images = torch.cat(runs)
    images = images * torch.empty(len(images), 3, 1, 1).uniform_(0.92, 1.08)
    images = images + torch.randn_like(images) * torch.empty(len(images), 1, 1, 1).uniform_(0, 0.02)
    return (images - MEAN[0]) / STD[0]


def half(model: open_clip.CLIP) -> dict[str, Tensor]:
    """The weights in 16 bits: open_clip widens them when it loads them."""
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }


def contrastive_loss(model: open_clip.CLIP, images: Tensor, texts: Tensor) -> Tensor:
    """CLIP's loss, summed over all pairs of the views and the names.

    The names of a batch all differ, so that equal names are always positives.
    """
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode_image(images.contiguous(memory_format=torch.channels_last))
    sides = [*F.normalize(encoded.float(), dim=-1).chunk(VIEWS)]
    sides.append(model.encode_text(texts, normalize=True))
    positives = torch.arange(len(texts))
    losses = []
    for one, other in combinations(sides, 2):
        logits = model.logit_scale.exp() * one @ other.T
        losses += [
            F.cross_entropy(logits, positives),
            F.cross_entropy(logits.T, positives),
        ]
    return torch.stack(losses).mean()


if __name__ == "__main__":
    main()
