"""What one worker does: steps on its share of every batch, looks at the dev set, checkpoints.

The optimiser is the paper's: AdamW, no decay on biases, clipping, a linear schedule with warm-up; a step
is an optimiser step, whatever micro-batches and workers it took. Every worker holds the whole mapper and
optimiser, and all do the same update. The first worker writes. Knows nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Cache

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.settings import Train
from gemel_ray.training import checkpoint, curve
from gemel_ray.training.checkpoint import Point, State
from gemel_ray.training.dev import NOTHING, Dev, order, told
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
    """Everything a worker needs to know, small enough to be sent."""

    config: Config
    workspace: Path
    knowledge: str  # the version of it that the training began with
    train: Path  # folders of prepared examples
    dev: Path
    dev_chosen: tuple[int, ...]
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.workspace / "training"


def run(task: Task, team: Team, device: str, say: Say) -> Point:
    """Train to the end from wherever the checkpoint stands; returns the best look."""
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
            self._tell(f"every prompt is computed whole, slowly: the language model has {why}")
        self.dev = Dev(self.model, self.workspace.tree, chosen, team, self.options.tokens)
        self.optimiser = optimiser(self.mapper, self.options)
        a_pass = -(-len(self.examples) // self.options.batch)
        self.steps = round(self.options.epochs * a_pass)
        self.schedule = schedule(self.optimiser, self.steps, self.options.warmup)
        self.trunks = Trunks(self.options.keep)
        self.state = State(task.fingerprint)

    def resume(self) -> None:
        """Go on from the checkpoint, or begin: the first look is at the untrained mapper."""
        found = checkpoint.load(self.task.folder / CHECKPOINT)
        if found is not None and found.fingerprint == self.task.fingerprint:
            self.state = found
            self._restore(found.weights)
            self._tell(f"going on from step {found.step} of {self.steps}")
        elif self.options.start == "ridge":
            best_start(self.mapper, self.dev, self.model, self.examples, self.options, self._tell)
        self.team.same([p.data for p in self.mapper.parameters()])
        self.logs = curve.Logs(self.task.folder / "logs", self.state.step) if self.team.rank == 0 else None
        self.began, self.first = time.monotonic(), self.state.step
        if not self.state.points:
            nothing = self.dev.nothing(self.mapper, decoded=self.options.decode_every > 0)
            self._tell("; ".join(f"{words}: {told(nothing, '_' + name)}" for name, words in NOTHING.items()))
            self.look({"step": 0, **nothing})

    def step(self) -> None:
        """One optimiser step on one batch."""
        options, state = self.options, self.state
        began = time.monotonic()
        chosen = self.examples
        batch = [chosen[i] for i in batch_of(state.step, len(chosen), options.batch, options.seed)]
        loss = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self.mapper.parameters(), options.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        state.step += 1
        point = {"step": state.step, "loss": loss, "seconds": time.monotonic() - began}
        if state.step % options.evaluate_every == 0 or state.step == self.steps or self._decodes():
            self.look(point)
        else:
            self._keep(point)

    def look(self, point: Point) -> None:
        """Measure on the dev set, keep the mapper if it is the best, write the checkpoint."""
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
        self._keep(point)
        self._tell(self._line(point, better))
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
        """Gradients of the mean over all the batch's target tokens; returns it."""
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
        """With train.keep, what shared beginnings are, as of some steps ago."""
        if not self.options.keep:
            return None
        return partial(self.trunks.of, self.model, self.mapper, step=self.state.step)

    def _decodes(self) -> bool:
        return self.options.decode_every > 0 and self.state.step % self.options.decode_every == 0

    def _stops(self) -> bool:
        return self.state.step >= self.steps or self.state.idle >= self.options.patience

    def _better(self, point: Point) -> bool:
        """By accuracy, ties by loss; a look that decodes nothing is compared where no look does."""
        best = self.state.best
        if self.options.decode_every and "accuracy" not in point:
            return False
        return not best or order(point) > order(best)

    def _keep(self, point: Point) -> None:
        self.state.points.append(point)
        if self.logs is not None:
            self.logs.add(point)

    def _tell(self, text: str) -> None:
        if self.team.rank == 0:
            self.say(text)

    def _line(self, point: Point, better: bool) -> str:
        step, done = self.state.step, self.state.step - self.first
        pace = (time.monotonic() - self.began) / max(1, done)
        trained = f"  loss {point['loss']:.3f}" if "loss" in point else ""
        accuracy = f"  accuracy {point['accuracy']:.1%}" if "accuracy" in point else ""
        left = f"  {pace:.2f} s a step, {pace * (self.steps - step) / 60:.1f} min left" if done else ""
        seen = f"step {step}/{self.steps}{trained}  dev {point['dev_loss']:.3f}{accuracy}"
        return f"{seen}{' *' if better else ''}{left}  {peak_memory()}"

    def _weights(self) -> dict[str, Any]:
        return {
            "mapper": self.mapper.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }

    def _restore(self, weights: dict[str, Any]) -> None:
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
    """Up in a line over the share `warmup` of the steps, then down to nothing."""
    warm = max(1, round(warmup * steps))
    return torch.optim.lr_scheduler.LambdaLR(
        adam, lambda s: min((s + 1) / warm, max(0.0, (steps - s) / max(1, steps - warm)))
    )
