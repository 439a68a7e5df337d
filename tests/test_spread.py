"""A machine with several GPUs, made up: the default layout's encoders are spread, each beside its engines."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from jobs import ENVIRONMENT

from gemel_ray import offline, sizing
from gemel_ray.config import STAGES, load
from gemel_ray.job.worker import Worker
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.progress import Progress
from gemel_ray.segments import Offline, SegmentOptions, spread
from gemel_ray.sizing import Gpu, Machine

FRONT, BACK = STAGES[:-1], STAGES[-1:]
TWO = Machine(11, (Gpu("L4", 22.5),) * 2)  # cores for three processes before the engines


def segments(*given: tuple[int, float, float]) -> Offline:
    """With these workers, CPUs and GPUs each."""
    return Offline(segments=tuple(SegmentOptions(workers=w, cpus=c, gpus=g) for w, c, g in given))


def test_workers_that_share_gpus_take_them_in_turn() -> None:
    assert spread(segments((3, 2.0, 0.1), (2, 1.0, 0.6)), 2) == (5.0, 3.0)
    assert spread(segments((1, 9.0, 0.0), (4, 1.0, 0.5)), 2) == (2.0, 2.0)  # no GPU, so none of their CPUs


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ([(3, 2.0, 0.1), (1, 1.0, 0.6)], 1),
        ([(4, 1.0, 1.0)], 4),
        ([(1, 1.0, 0.0)], 4),
        ([(4, 1.0, 0.25), (3, 1.0, 1.0)], 4),  # four share one GPU, and three have one each
        ([(3, 1.0, 0.3), (1, 1.0, 2.0)], 3),
    ],
)
def test_otherwise_ray_places_them(given: list[tuple[int, float, float]], gpus: int) -> None:
    assert spread(segments(*given), gpus) == ()


def test_a_cluster_s_workers_are_placed_by_ray() -> None:
    two = ((3, 2.0, 0.1), (2, 1.0, 0.6))
    there = Offline(address="auto", segments=segments(*two).segments)
    assert spread(there, 2) == ()


def test_hand_made_segments_on_one_machine_are_sized_for_what_one_gpu_gets() -> None:
    """As Ray places the same on a cluster, all four encoders may be beside one engine."""
    cut = "[{stages: [detect, encode], workers: 4, gpus: 0.1}, {stages: [retrieve, assemble, generate], "
    cut += "workers: 4, gpus: 0.6}]"
    four = Machine(48, (Gpu("L4", 22.5),) * 4)
    shares = []
    for address in ("local", "auto"):
        config = load(None, {}, [f"offline.segments={cut}", f"offline.address={address}"])
        shares.append(sizing.fit(config, "offline", four, 0.3).config.generate.gpu_memory)
    assert shares == [0.85, 0.58]


class Opening(offline.Opening):
    """A worker that writes its process and GPU when it starts."""

    def worker(self, stages: Any) -> Worker:
        with (Path(str(self.output)) / "placed.txt").open("a") as file:
            gpu, visible = ray.get_gpu_ids()[0], os.environ["CUDA_VISIBLE_DEVICES"]
            file.write(f"{stages[-1]} {gpu} {visible} {os.getpid()}\n")
        return super().worker(stages)


def placed(output: Path) -> list[tuple[str, int, int]]:
    """Every worker's last stage, GPU and process, as they started."""
    lines = [line.split() for line in (output / "placed.txt").read_text().splitlines()]
    assert all(gpu == visible for _, gpu, visible, _ in lines)
    return [(stage, int(gpu), int(process)) for stage, gpu, _, process in lines]


@pytest.mark.slow
@pytest.mark.ray
def test_every_gpu_has_its_encoders_and_its_engine_also_after_deaths(
    workspace_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real job, without a language model: votes alone. One worker of each kind is killed in it."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # workers import this file
    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=len(TWO.gpus)))
    monkeypatch.setattr(sizing, "here", lambda: TWO)
    monkeypatch.setattr(offline, "Opening", Opening)
    config = load(None, read_facts(workspace_folder)["settings"], ["generate.neighbour_weight=1"])
    lines = [{"id": f"d{n}", "text": "Adobe", "mentions": [{"start": 0, "end": 5}]} for n in range(4000)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output, killed = tmp_path / "out", list[tuple[str, int, int]]()

    def report(progress: Progress) -> None:
        started = placed(output)
        if progress.documents and not killed and len(started) == 5:
            killed.extend(next(w for w in started if w[0] == stage) for stage in ("assemble", "generate"))
            for _, _, process in killed:
                psutil.Process(process).kill()

    manifest = offline.link(config, workspace_folder, [str(tmp_path / "in.jsonl")], output, report)
    assert (manifest["rows"], manifest["errors"]) == (4000, {})
    began = placed(output)
    kinds = Counter((stage, gpu) for stage, gpu, _ in began[:5])
    assert kinds == {("assemble", 0): 2, ("assemble", 1): 1, ("generate", 0): 1, ("generate", 1): 1}
    assert sorted(again[:2] for again in began[5:]) == sorted(dead[:2] for dead in killed)
    workers = json.loads((output / "progress.json").read_text())["workers"]
    assert {gpu for worker in workers.values() for gpu in worker["gpus"]} == {"0", "1"}
