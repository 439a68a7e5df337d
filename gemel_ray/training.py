"""Training the feature mapper: vision model and language model frozen, only the mapper learns (paper, 3.1).

Prompts come from the graph's own stages, so a training prompt is what link would ask; the loss is
on the query's target and end-of-name token only. AdamW, no decay on the bias, clipping, a linear
schedule with warm-up that counts optimiser steps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from gemel_ray.config import Config
from gemel_ray.engine.prompts import QUERY_IMAGE, image_of
from gemel_ray.graph import explode, run_in_process
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.models.clip import torch_device
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.readers import documents

Say = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """A prompt as Assemble writes it, the features of its pictures in order, and the target's tokens."""

    prompt: list[int]
    features: np.ndarray  # float32 [pictures, feature]
    target: list[int]  # with the end-of-name token

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def train(config: Config, files: Sequence[str], dev_files: Sequence[str], folder: Path, say: Say) -> float:
    """Train a mapper and put the best into the workspace; returns its dev loss (nats a token)."""
    options = config.train
    torch.manual_seed(options.seed)
    workspace = Workspace.open(folder, config)
    workspace.sees = True
    examples = list(_examples(config, workspace, files))
    dev = list(_examples(config, workspace, dev_files))
    random.Random(options.seed).shuffle(dev)
    dev = dev[: options.dev_mentions]
    if not examples or not dev:
        raise ValueError("training needs documents with a picture and a target, both in --train and --dev")
    tokens = np.mean([len(e) for e in examples])
    say(f"{len(examples):,} training mentions of {tokens:.0f} tokens, {len(dev):,} dev mentions")
    trainer = _Trainer(config, workspace.language_model, examples[0].features.shape[1])
    mapper_file = folder / "mapper.safetensors"
    return trainer.run(examples, dev, mapper_file, workspace.facts["revisions"], say)


def _examples(config: Config, workspace: Workspace, files: Sequence[str]) -> Iterator[Example]:
    """Solved mentions with a picture, through the graph up to the prompt."""
    graph = linking_graph(config, workspace)
    segment = graph.segment(["detect", "encode", "retrieve", "assemble"], workspace)
    end = workspace.tree.end_token
    targets: dict[tuple[str, str], str] = {}

    def batches() -> Iterator[Any]:
        for file in files:
            for table in documents(file):
                for row in explode(table.append_column("status", table["error"]), ("given",)).to_pylist():
                    if row["target"]:
                        targets[row["document_id"], row["mention_id"]] = row["target"]
                yield table

    for result in run_in_process(segment, batches()):
        rows = [
            r
            for r in result.to_pylist()
            if r["prompt"]
            and r["image_vector"] is not None
            and (r["document_id"], r["mention_id"]) in targets
        ]
        names = workspace.tokenize([targets[r["document_id"], r["mention_id"]] for r in rows])
        for row, name in zip(rows, names, strict=True):
            yield Example(row["prompt"], _features(row, workspace.bank), [*name, end])
    segment.close()


def _features(row: dict[str, Any], bank: Bank) -> np.ndarray:
    return np.array(
        [
            row["image_vector"] if r == QUERY_IMAGE else bank.image_vectors[bank.image_row(image_of(r))]
            for r in row["prompt"]
            if r < 0
        ],
        np.float32,
    )


class _Trainer:
    def __init__(self, config: Config, language_model: str, feature: int) -> None:
        from transformers import AutoModelForCausalLM

        self.options = config.train
        self.device = torch_device(config.train.device)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            language_model, dtype=getattr(torch, config.train.dtype)
        ).to(self.device)
        self.model.eval().requires_grad_(False)
        width = self.model.get_input_embeddings().weight.shape[1]
        self.mapper = FeatureMapper(feature, config.train.prefix, width).to(self.device)
        self.embed = self.model.get_input_embeddings()

    def warm_start(self, examples: list[Example]) -> None:
        """Begin where a prefix spells its picture's entity: ridge regression from the features onto the
        embeddings of the names' first tokens. (Not in the paper, which starts at random: the language
        model reads names from the first step on, which spares most of the training.)"""
        end = examples[0].target[-1]
        queries = [(e.features[-1], e.target) for e in examples]  # the query's own picture stands last
        tokens = [(t[:-1] + [end] * self.mapper.prefix)[: self.mapper.prefix] for _, t in queries]
        with torch.no_grad():
            features = torch.from_numpy(np.stack([f for f, _ in queries])).double()
            names = self.embed(torch.tensor(tokens, device=self.device)).double().cpu().flatten(1)
            middle, mean = features.mean(0), names.mean(0)
            centred = features - middle
            covariance = centred.T @ centred
            ridge = self.options.ridge * covariance.diagonal().mean()
            damped = covariance + ridge * torch.eye(len(covariance), dtype=torch.double)
            weight = torch.linalg.solve(damped, centred.T @ (names - mean)).T
            self.mapper.linear.weight.copy_(weight)
            self.mapper.linear.bias.copy_(mean - weight @ middle)

    def run(
        self, examples: list[Example], dev: list[Example], file: Path, revisions: dict[str, str], say: Say
    ) -> float:
        """Train for the configured epochs; keep the mapper of the lowest dev loss in `file`."""
        options = self.options
        steps = round(options.epochs * len(examples) / options.batch)
        optimiser = torch.optim.AdamW(
            [
                {"params": [self.mapper.linear.weight], "weight_decay": options.weight_decay},
                {"params": [self.mapper.linear.bias], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        )
        warm = max(1, round(options.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda s: min((s + 1) / warm, max(0.0, (steps - s) / max(1, steps - warm)))
        )
        self.warm_start(examples)
        best, began = self._dev_loss(dev), time.monotonic()
        self.mapper.save(file, revisions=revisions, dev_loss=best, step=0)
        say(f"warm start: dev {best:.3f}; {steps} steps to go")
        for step, batch in enumerate(self._batches(examples, steps), 1):
            loss = self._loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.mapper.parameters(), options.clip_norm)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if step % options.look == 0 or step == steps:
                dev_loss = self._dev_loss(dev)
                pace = (time.monotonic() - began) / step
                better = dev_loss < best
                say(
                    f"step {step}/{steps}  loss {loss.item():.3f}  dev {dev_loss:.3f}{' *' if better else ''}"
                    f"  {pace:.2f} s a step, {pace * (steps - step) / 60:.1f} min left"
                )
                if better:
                    best = dev_loss
                    self.mapper.save(file, revisions=revisions, dev_loss=dev_loss, step=step)
        return best

    def _batches(self, examples: list[Example], steps: int) -> Iterator[list[Example]]:
        """Shuffled anew each epoch; a batch's examples are alike in length, so that little is padded."""
        rng, size = random.Random(self.options.seed), self.options.batch
        made = 0
        while made < steps:
            rng.shuffle(examples)
            for start in range(0, len(examples), 8 * size):
                window = sorted(examples[start : start + 8 * size], key=len)
                batches = [window[i : i + size] for i in range(0, len(window), size)]
                rng.shuffle(batches)
                yield from batches[: steps - made]
                made += len(batches)
                if made >= steps:
                    return

    def _dev_loss(self, dev: list[Example]) -> float:
        with torch.no_grad():
            size = self.options.batch
            parts = [dev[i : i + size] for i in range(0, len(dev), size)]
            return sum(self._loss(part).item() * len(part) for part in parts) / len(dev)

    def _loss(self, batch: list[Example]) -> torch.Tensor:
        """Mean over the batch's target tokens of minus log-probability."""
        prefixes = self.mapper(torch.from_numpy(np.concatenate([e.features for e in batch])).to(self.device))
        rows = iter(prefixes)
        embeddings, labels = [], []
        for example in batch:
            inputs = [*example.prompt, *example.target[:-1]]
            parts = []
            done = 0
            for place in [i for i, t in enumerate(inputs) if t < 0]:
                parts += [
                    self.embed(torch.tensor(inputs[done:place], dtype=torch.long, device=self.device)),
                    next(rows),
                ]
                done = place + 1
            parts.append(self.embed(torch.tensor(inputs[done:], device=self.device)))
            embeddings.append(torch.cat([p.to(self.model.dtype) for p in parts]))
            label = torch.full((len(embeddings[-1]),), -100, device=self.device)
            label[-len(example.target) :] = torch.tensor(example.target, device=self.device)
            labels.append(label)
        inputs_embeds = pad_sequence(embeddings, batch_first=True)
        targets = pad_sequence(labels, batch_first=True, padding_value=-100)
        # Padded at the end, under a causal model: what stands before never sees it. A mask would only
        # keep attention from its fast kernel (ten times slower in bfloat16 on a CPU).
        hidden = self.model.base_model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        # The vocabulary's logits of the target positions only: they are a tenth of all.
        asked = targets >= 0
        logits = self.model.get_output_embeddings()(hidden[asked])
        return cross_entropy(logits.float(), targets[asked])
