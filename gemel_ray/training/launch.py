"""From files to a trained mapper in the workspace: checks, prepares, and starts the workers by Ray Train.

One worker on this machine runs in this process, and no Ray is started. Not in Ray Train's local mode: at its
end that destroys the process groups of whatever else runs here, such as an engine.
After a kill, the same command continues from the last checkpoint in WORKSPACE/training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.remote import Shared
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.encoders import torch_device
from gemel_ray.sizing import for_training
from gemel_ray.training import checkpoint
from gemel_ray.training.checkpoint import Point
from gemel_ray.training.dev import BASELINES, better_baseline, summary
from gemel_ray.training.examples import Examples, prepared
from gemel_ray.training.loop import BEST, CHECKPOINT, Task, run
from gemel_ray.training.team import Team

Say = Callable[[str], None]
_CURVES = 2  # a curve of an earlier form is not continued; since 2 it has the baselines


def train(config: Config, files: Sequence[str], dev_files: Sequence[str], folder: Path, say: Say) -> Point:
    """Train a mapper and put the best one into the workspace; returns its evaluation: `step`, `dev_loss`
    (nats per token) and, with train.decode_every, `accuracy`.

    Raises ValueError if the settings, the workspace or the files do not permit training.
    """
    if not config.assemble.images:
        raise Mistake("assemble.images is false: without pictures in the prompts there is nothing to train")
    config, asked = for_training(config), config.train.dtype
    if config.train.dtype != asked:
        say(f"train.dtype {config.train.dtype}: the processor has no instructions for {asked}")
    workspace = Workspace.open(folder, config)
    workspace.ask(say)
    examples = prepared(config, workspace, files, say)
    dev = prepared(config, workspace, dev_files, say)
    task = _task(config, workspace, examples, dev)
    say(f"{len(examples):,} training mentions, {len(task.dev_chosen):,} of {len(dev):,} dev mentions")
    former = checkpoint.load(task.folder / CHECKPOINT)
    if former is not None and former.fingerprint != task.fingerprint:
        say(
            f"{task.folder} was made with other settings, files or models: training starts from the beginning"
        )
        shutil.rmtree(task.folder)
    task.folder.mkdir(exist_ok=True)
    if former is not None and former.fingerprint == task.fingerprint and former.finished:
        say(f"finished already: nothing is left to do (remove {task.folder} to train again)")
        best = former.best
    else:
        best = _run(task, say)
    state = checkpoint.load(task.folder / CHECKPOINT)
    assert state is not None
    _install(task, folder, best, state.points[0], say)
    return best


def _install(task: Task, folder: Path, best: Point, first: Point, say: Say) -> None:
    """Put the best mapper into the workspace, unless a baseline was better."""
    text = f"the best mapper is that of step {best['step']:.0f}, {summary(best)}"
    if (baseline := better_baseline(best, first)) is not None:
        say(
            f"{text}. NONE is put into {folder}: {BASELINES[baseline]} it was "
            f"{summary(first, '_' + baseline)}. The best mapper remains in {task.folder / BEST}; other "
            "examples or settings may give a better one"
        )
        return
    storage.write(folder / "mapper.safetensors", (task.folder / BEST).read_bytes())
    say(f"{text}; it is in {folder}")


def _task(config: Config, workspace: Workspace, examples: Examples, dev: Examples) -> Task:
    options = config.train
    chosen = random.Random(options.seed).sample(range(len(dev)), min(options.dev_mentions, len(dev)))
    meaning = {f.name: getattr(options, f.name) for f in fields(options) if "machine" not in f.metadata}
    facts = json.dumps([_CURVES, meaning, examples.key, dev.key], sort_keys=True)
    fingerprint = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
    folder = workspace.folder.resolve()
    train, dev_made = (folder / "cache" / made.key for made in (examples, dev))
    return Task(config, folder, workspace.knowledge, train, dev_made, tuple(sorted(chosen)), fingerprint)


def _run(task: Task, say: Say) -> Point:
    """Run all workers to the end; the best evaluation."""
    if task.config.train.workers == 1 and task.config.offline.address == "local":
        options = task.config.train
        return run(task, Team(), torch_device("auto" if options.gpus else options.device), say)
    from gemel_ray.job.shared import of_workspace
    from gemel_ray.nodes import connect, mismatch

    train, address = task.config.train, task.config.offline.address
    connect(address, train.workers * train.cpus + 1)  # one for the controller
    import ray
    from ray.util.queue import Queue

    try:
        if sentence := mismatch(of_workspace(Shared.of(task.workspace), task.knowledge)):
            raise Mistake(sentence)
        messages: Any = Queue(actor_options={"num_cpus": 0})
        printer = threading.Thread(target=_print, args=(messages, say))
        printer.start()
        try:
            return _fit(task, messages)
        finally:
            messages.put(None)
            printer.join()
    finally:
        ray.shutdown()


def _print(messages: Any, say: Say) -> None:
    while (text := messages.get()) is not None:
        say(text)


def _fit(task: Task, messages: Any) -> Point:
    """Run Ray Train; the workers put what they say into the queue `messages`."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    options = task.config.train
    resources = {"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "messages": messages},
        torch_config=TorchConfig(backend="nccl" if options.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=options.workers, use_gpu=options.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(name=task.fingerprint, storage_path=str(task.folder / "ray")),
    )
    trainer.fit()
    state = checkpoint.load(task.folder / CHECKPOINT)
    assert state is not None and state.finished
    return state.best


def _worker(settings: Mapping[str, Any]) -> None:
    """Train, in each worker's process."""
    import ray.train
    import ray.train.torch
    import torch

    task, messages = settings["task"], settings["messages"]
    options, context = task.config.train, ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    if team.size > 1:
        local = task.config.offline.address == "local"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // team.size if local else int(options.cpus)))
    device = str(ray.train.torch.get_device()) if options.gpus else torch_device(options.device)
    ray.train.report(run(task, team, device, messages.put))
