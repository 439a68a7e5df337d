"""The work of one worker: steps on its share of every batch, evaluations on the dev set, checkpoints.

The optimiser is the paper's: AdamW, no decay on biases, clipping, a linear schedule with warm-up; a step
is an optimiser step, however many micro-batches and workers it takes. Every worker has the whole mapper and
optimiser, and all make the same update. The first worker writes. Knows nothing of Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Cache

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.settings import Train
from gemel_ray.training import checkpoint, curve
from gemel_ray.training.checkpoint import Point, State, Weights
from gemel_ray.training.dev import BASELINES, Dev, quality, summary
from gemel_ray.training.examples import Example, Examples
from gemel_ray.training.frozen import language_model, peak_memory
from gemel_ray.training.losses import losses, share_beginnings, trained_length
from gemel_ray.training.packing import Family
from gemel_ray.training.team import Team, batch_of
from gemel_ray.training.trunks import Trunks
from gemel_ray.training.warm_start import best_start

Say = Callable[[str], None]
CHECKPOINT, BEST = "checkpoint.pt", "best.safetensors"


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs, small enough to be sent."""

    config: Config
    workspace: Path
    knowledge: str  # the version of the workspace with which training began
    train: Path  # folders of prepared examples
    dev: Path
    dev_chosen: tuple[int, ...]
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.workspace / "training"


def run(task: Task, team: Team, device: str, say: Say) -> Point:
    """Train to the end from the checkpoint, if there is one; returns the best evaluation."""
    loop = Loop(task, team, device, say)
    loop.resume()
    while not loop.state.finished:
        loop.step()
    return loop.state.best


class Loop:
    """Model, mapper, optimiser and the state of a training."""

    def __init__(self, task: Task, team: Team, device: str, say: Say) -> None:
        self.task, self.team, self.say = task, team, say
        self.options: Train = task.config.train
        torch.manual_seed(self.options.seed)
        self.workspace = Workspace.open(task.workspace, task.config, task.knowledge)
        bank = self.workspace.bank
        self.examples = Examples(task.train, bank)
        dev = Examples(task.dev, bank)
        chosen = sorted((dev[i] for i in task.dev_chosen), key=lambda e: len(e.prompt))
        self.model: Any = language_model(self.workspace.language_model, self.options, device)
        width = self.model.get_input_embeddings().weight.shape[1]
        feature = self.examples.queries.shape[1]
        self.mapper = FeatureMapper(feature, self.options.prefix, width, self.options.hidden).to(device)
        if why := share_beginnings(self.model, self.mapper):
            self._report(f"every prompt is computed whole, which is slow: the language model has {why}")
        self.dev = Dev(self.model, self.workspace.tree, chosen, team, self.options.tokens)
        self.optimiser = optimiser(self.mapper, self.options)
        steps_per_epoch = -(-len(self.examples) // self.options.batch)
        self.steps = round(self.options.epochs * steps_per_epoch)
        self.schedule = schedule(self.optimiser, self.steps, self.options.warmup)
        self.trunks = Trunks(self.options.keep)
        self.state = State(task.fingerprint)

    def resume(self) -> None:
        """Continue from the checkpoint, or begin with an evaluation of the untrained mapper."""
        former = checkpoint.load(self.task.folder / CHECKPOINT)
        if former is not None and former.fingerprint == self.task.fingerprint:
            self.state = former
            self._restore(former.weights)
            self._report(f"going on from step {former.step} of {self.steps}")
        elif self.options.start == "ridge":
            best_start(self.mapper, self.dev, self.model, self.examples, self.options, self._report)
        self.team.broadcast([p.data for p in self.mapper.parameters()])
        self.logs = curve.Logs(self.task.folder / "logs", self.state.step) if self.team.rank == 0 else None
        self.began, self.first = time.monotonic(), self.state.step
        if not self.state.points:
            baselines = self.dev.baselines(self.mapper, decoded=self.options.decode_every > 0)
            named = BASELINES.items()
            self._report("; ".join(f"{text}: {summary(baselines, '_' + name)}" for name, text in named))
            self.evaluate({"step": 0, **baselines})

    def step(self) -> None:
        """Make one optimiser step on one batch."""
        options, state, examples = self.options, self.state, self.examples
        began = time.monotonic()
        batch = [examples[i] for i in batch_of(state.step, len(examples), options.batch, options.seed)]
        loss = self._backward(batch)
        norm = float(torch.nn.utils.clip_grad_norm_(self.mapper.parameters(), options.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Mistake(
                f"step {state.step + 1}: the loss ({loss:g}) or its gradient ({norm:g}) is not finite: lower "
                "train.learning_rate, or try train.dtype=float32"
            )
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        state.step += 1
        point = {"step": state.step, "loss": loss, "seconds": time.monotonic() - began}
        if state.step % options.evaluate_every == 0 or state.step == self.steps or self._decodes():
            self.evaluate(point)
        else:
            self._record(point)

    def evaluate(self, point: Point) -> None:
        """Measure on the dev set, save the mapper if it is the best, write the checkpoint."""
        state = self.state
        self.model.eval()
        point["dev_loss"] = self.dev.loss(self.mapper)
        state.idle = 0 if point["dev_loss"] < state.lowest else state.idle + 1
        state.lowest = min(state.lowest, point["dev_loss"])
        if self.options.decode_every and (self._decodes() or self._stops()):
            point["accuracy"] = self.dev.accuracy(self.mapper)
        better = self._better(point)
        if better:
            state.best, state.idle = dict(point), 0
        state.finished = self._stops()
        self._record(point)
        self._report(self._line(point, better))
        if self.team.rank == 0:
            about = {k: v for k, v in point.items() if k != "seconds"}
            if better:
                revisions = self.workspace.facts["revisions"]
                self.mapper.save(self.task.folder / BEST, revisions=revisions, **about)
            curve.write(state.points, self.task.folder)
            state.weights = self._weights()
            checkpoint.save(state, self.task.folder / CHECKPOINT)
            if self.logs is not None and state.finished:
                self.logs.close()

    def _backward(self, batch: list[Example]) -> float:
        """Compute the gradients of the mean loss over the batch's target tokens; returns this mean."""
        self.model.train(self.options.checkpointing)
        length = trained_length(self.mapper.prefix)
        share = self.team.share(sorted(batch, key=length))
        whole = sum(len(e.target) for e in batch)
        total = torch.zeros(1, device=self.model.device)
        for _, part in losses(self.model, self.mapper, share, self.options.tokens, self._trunk_of()):
            loss = part.sum() / whole
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.team.size > 1:
            weights = list(self.mapper.parameters())
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
            summed = self.team.sum(torch.cat([total, *(g.flatten() for g in gradients)]))
            total, *parts = summed.split([1, *(p.numel() for p in weights)])
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = part.view_as(weight)
        return total.item()

    def _trunk_of(self) -> Callable[[Family], Cache] | None:
        """The function that gives the states of shared beginnings, up to train.keep steps old."""
        if not self.options.keep:
            return None
        return partial(self.trunks.of, self.model, self.mapper, step=self.state.step)

    def _decodes(self) -> bool:
        return self.options.decode_every > 0 and self.state.step % self.options.decode_every == 0

    def _stops(self) -> bool:
        return self.state.step >= self.steps or self.state.idle >= self.options.patience

    def _better(self, point: Point) -> bool:
        """Whether the point is the best so far. With train.decode_every, only points with an accuracy are
        compared."""
        best = self.state.best
        if self.options.decode_every and "accuracy" not in point:
            return False
        return not best or quality(point) > quality(best)

    def _record(self, point: Point) -> None:
        self.state.points.append(point)
        if self.logs is not None:
            self.logs.add(point)

    def _report(self, text: str) -> None:
        if self.team.rank == 0:
            self.say(text)

    def _line(self, point: Point, better: bool) -> str:
        step, done = self.state.step, self.state.step - self.first
        pace = (time.monotonic() - self.began) / max(1, done)
        trained = f"  loss {point['loss']:.3f}" if "loss" in point else ""
        accuracy = f"  accuracy {point['accuracy']:.1%}" if "accuracy" in point else ""
        left = f"  {pace:.2f} s per step, {pace * (self.steps - step) / 60:.1f} min left" if done else ""
        figures = f"step {step}/{self.steps}{trained}  dev {point['dev_loss']:.3f}{accuracy}"
        return f"{figures}{' *' if better else ''}{left}  {peak_memory()}"

    def _weights(self) -> Weights:
        return {
            "mapper": self.mapper.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }

    def _restore(self, weights: Weights) -> None:
        self.mapper.load_state_dict(weights["mapper"])
        self.optimiser.load_state_dict(weights["optimiser"])
        self.schedule.load_state_dict(weights["schedule"])
        torch.set_rng_state(weights["random"])


def optimiser(mapper: FeatureMapper, options: Train) -> torch.optim.AdamW:
    """AdamW without decay on biases."""
    matrices = [p for p in mapper.parameters() if p.ndim > 1]
    biases = [p for p in mapper.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def schedule(adam: torch.optim.AdamW, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """A learning rate that rises linearly over the share `warmup` of the steps, then falls to zero."""
    warm = max(1, round(warmup * steps))
    return torch.optim.lr_scheduler.LambdaLR(
        adam, lambda s: min((s + 1) / warm, max(0.0, (steps - s) / max(1, steps - warm)))
    )
