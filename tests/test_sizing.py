"""The default configuration on made-up machines; what a person says stays; who shares a GPU fits on it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gemel_ray import sizing
from gemel_ray.config import STAGES, Config, load
from gemel_ray.engine.vllm import starting
from gemel_ray.environment import cores, threads, variables
from gemel_ray.job.driving import preview
from gemel_ray.job.selection import Selection
from gemel_ray.segments import SegmentOptions, spread
from gemel_ray.sizing import Gpu, Machine, computes_bfloat16, fit, here, visible, weights

SMALL, SEVEN, SEVENTY = 0.3, 13.5, 131.0  # GiB of weights
LAPTOP = Machine(2)
H100 = Machine(16, (Gpu("H100", 79.6),))
L4S = Machine(48, (Gpu("L4", 22.5),) * 4)
A100S = Machine(96, (Gpu("A100", 79.2),) * 8)
TIGHT = Machine(4, (Gpu("L4", 22.5),) * 4)
GPUS = {"h100": H100, "4 l4": L4S, "8 a100": A100S, "4 l4, 4 cores": TIGHT}
LISTED = """0, GPU-aaaa-1, NVIDIA L4, 23034
1, GPU-bbbb-2, NVIDIA L4, 23034
2, GPU-cccc-3, NVIDIA H100 80GB HBM3, 81559
"""


def test_one_core_has_all_stages_in_one_process() -> None:
    for way in ("offline", "online"):
        assert fit(Config(), way, Machine(1), SMALL).config == Config()
    assert fit(Config(), "online", LAPTOP, SMALL).config == Config()


@pytest.mark.parametrize(("cores", "front"), [(2, 1), (8, 2), (64, 16)])
def test_without_a_gpu_the_engine_has_a_process_of_its_own(cores: int, front: int) -> None:
    segments = fit(Config(), "offline", Machine(cores), SMALL).config.offline.segments
    assert [(s.stages, s.workers, s.gpus) for s in segments] == [(STAGES[:-1], 1, 0.0), (STAGES[-1:], 1, 0.0)]
    threads = [variables(s, 1, "local")["OMP_NUM_THREADS"] for s in segments]
    assert threads == [str(front), str(cores)]


def test_a_processor_without_bfloat16_computes_a_small_model_in_float32() -> None:
    old = Machine(2, bfloat16=False)
    for way in ("offline", "online"):
        found = fit(Config(), way, old, SMALL)
        assert found.config.generate.dtype == "float32"
        assert "no instructions for bfloat16" in found.chosen[-1]
        assert fit(Config(), way, LAPTOP, SMALL).config.generate.dtype == "bfloat16"
    half = load(None, {}, ["generate.dtype=float16"])
    assert fit(half, "offline", old, SMALL).config.generate.dtype == "float16"
    assert fit(Config(), "offline", old, SEVEN).config.generate.dtype == "bfloat16"  # twice the memory
    on_gpu = replace(H100, bfloat16=False)
    assert fit(Config(), "offline", on_gpu, SMALL).config.generate.dtype == "bfloat16"


def test_such_a_processor_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(machine: Machine, *settings: str) -> str:
        monkeypatch.setattr(sizing, "here", lambda: machine)
        return sizing.for_training(load(None, {}, settings)).train.dtype

    assert trains(Machine(2, bfloat16=False)) == "float32"
    assert trains(Machine(2, bfloat16=False), "offline.address=head:6379") == "bfloat16"
    assert trains(LAPTOP) == trains(replace(H100, bfloat16=False)) == "bfloat16"


@pytest.mark.parametrize(
    ("processor", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni\nbugs\t: none\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("", True),  # not Linux: nothing is known
    ],
)
def test_linux_says_whether_a_processor_computes_bfloat16(processor: str, has: bool) -> None:
    assert computes_bfloat16(processor) is has


def test_what_nothing_uses_is_not_imported_by_a_start() -> None:
    """On a GPU, triton's kernels are used."""
    code = """
import sys
from gemel_ray.environment import fast_start
with fast_start():
    import transformers.generation.candidate_generator
    import transformers.loss.loss_utils
    import torch._inductor.lowering
print(*sys.modules.keys() & {"scipy.optimize", "sklearn.metrics", "triton.language"})
import sklearn, scipy.optimize
"""

    def imported(program: str, devices: str) -> set[str]:
        there = os.environ | {"CUDA_VISIBLE_DEVICES": devices}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=there, capture_output=True, text=True, check=True
        )
        return set(ran.stdout.split())

    assert imported(code, "") == set()
    without = code.replace("with fast_start():", "if fast_start:")  # else the test says nothing
    assert imported(without, "") >= {"scipy.optimize", "sklearn.metrics"}
    triton = {"triton.language"} if find_spec("triton") else set()
    assert imported(code, "0") == triton


def test_large_encoders_have_room_beside_the_engines(tmp_path: Path) -> None:
    """CLIP ViT-L/14 and SimCSE-large are 3 GiB in float32; those of the starter, tens of megabytes."""
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2 << 30)
    large = load(None, {}, [f"models.clip={tmp_path}", f"models.mention_encoder={tmp_path}"])
    unknown = load(None, {}, ["models.clip=ViT-L-14/openai", "models.mention_encoder=nobody/has-this"])
    one = load(None, {}, [f"models.clip={tmp_path}", "models.mention_encoder=clip"])
    for config, encoder in [(large, 5.4), (unknown, 4.6), (one, 3.4), (Config(), 2.0)]:
        assert sizing.encoder_gib(config.models) == pytest.approx(encoder)
        found = fit(config, "offline", H100, SMALL).config
        front, back = found.offline.segments
        share = back.workers * found.generate.gpu_memory
        assert share <= 1 - (front.workers * encoder) / 79.6
        assert front.workers >= 4 and share > 0.5


@pytest.mark.parametrize(("model", "together"), [(SMALL, 0), (SEVEN, 0), (SMALL, 1), (SMALL, 3), (SMALL, 8)])
@pytest.mark.parametrize("there", GPUS.values(), ids=GPUS)
def test_every_gpu_has_its_engines_and_room_for_the_encoders(
    there: Machine, model: float, together: int
) -> None:
    asked = load(None, {}, [f"offline.engines_per_gpu={together}"])
    config = fit(asked, "offline", there, model).config
    front, back = config.offline.segments
    Config().line.cut((front, back))
    count, engine = len(there.gpus), config.generate
    together = together or (2 if model == SMALL and there in (H100, A100S) else 1)
    assert (back.stages, back.workers) == (("generate",), together * count)
    # Spread over the GPUs, in shares and in memory: the engines of one beside the encoders of one.
    beside = math.ceil(front.workers / count)
    assert (together + 1) * back.gpus > 1
    assert 0 < front.gpus * beside <= 1 - together * back.gpus
    if count > 1:
        held = spread(config.offline, count)
        assert len(held) == count and max(held) == beside * front.cpus + together * back.cpus
    least = min(card.gib for card in there.gpus)
    assert together * engine.gpu_memory * least + 1.9 * beside < least
    assert beside == 1 or front.workers >= count
    assert 1.2 * model < engine.gpu_memory * least
    assert front.workers * front.cpus + back.workers * back.cpus <= max(there.cores, (together + 1) * count)
    assert engine.batch_tokens >= max(engine.sequences, engine.columns * (engine.beams + 1))


def test_the_default_is_as_large_as_the_machine() -> None:
    """Figures that somebody decided: change them with a reason."""
    told = {}
    for name, there in GPUS.items():
        config = fit(Config(), "offline", there, SMALL).config
        front, back = config.offline.segments
        told[name] = (front.workers, front.cpus, back.workers, back.cpus, config.generate.gpu_memory)
    assert told == {
        "h100": (5, 2.0, 2, 2.0, 0.41),
        "4 l4": (12, 3.0, 4, 2.0, 0.67),
        "8 a100": (31, 2.0, 16, 2.0, 0.42),
        "4 l4, 4 cores": (1, 1.0, 4, 1.0, 0.85),
    }


def test_small_models_are_searched_by_the_hundred() -> None:
    for there, model, columns in ((H100, SMALL, 512), (H100, SEVEN, 128), (L4S, SMALL, 64)):
        assert fit(Config(), "offline", there, model).config.generate.columns == columns
    fewer = load(None, {}, ["generate.columns=32"])
    assert fit(fewer, "offline", H100, SMALL).config.generate.columns == 32


def test_an_endpoint_has_a_replica_a_gpu() -> None:
    config = fit(Config(), "online", A100S, SEVEN).config
    (segment,) = config.online.segments
    assert (segment.stages, segment.min_replicas, segment.gpus) == (STAGES, 8, 1.0)
    assert 0.8 < config.generate.gpu_memory < 0.95  # CLIP is in its process


def test_an_endpoint_s_encoders_have_room_beside_its_engine() -> None:
    config = load(None, {}, [f"online.segments={SAID}"])
    assert 0.85 < fit(config, "online", H100, SMALL).config.generate.gpu_memory < 0.94


def test_a_model_over_several_gpus_has_them_whole() -> None:
    config = load(None, {}, ["generate.tensor_parallel=4"])
    front, back = fit(config, "offline", A100S, SEVENTY).config.offline.segments
    assert (back.workers, back.gpus, front.gpus) == (2, 4.0, 0.0)
    with pytest.raises(ValueError, match=r"131\.0 GiB do not fit a GPU of 79 GiB: set generate\.tensor_par"):
        fit(Config(), "offline", A100S, SEVENTY)
    with pytest.raises(ValueError, match="tensor_parallel is 4, and this machine has 1 GPUs"):
        fit(config, "offline", H100, SEVENTY)
    both = load(None, {}, ["generate.tensor_parallel=4", "offline.engines_per_gpu=2"])
    with pytest.raises(ValueError, match="engines_per_gpu is for models on one GPU"):
        fit(both, "offline", A100S, SEVENTY)


SAID = "[{stages: [detect, encode], gpus: 0.1}, {stages: [retrieve, assemble, generate], gpus: 0.7}]"


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ([f"offline.segments={SAID}"], ["offline"]),
        (["generate.gpu_memory=0.45"], ["generate.gpu_memory"]),
        (["generate.batch_tokens=3000", "generate.sequences=300"], ["generate.batch_tokens"]),
        (["offline.sized=false", "generate.gpu_memory=0.5"], ["generate"]),
    ],
)
def test_what_is_said_stays(settings: list[str], stays: list[str]) -> None:
    asked = load(None, {}, settings)
    if "offline.sized=false" in settings:
        asked = replace(asked, offline=replace(asked.offline, segments=load(None, {}, [
            f"offline.segments={SAID}"]).offline.segments))  # fmt: skip
    found = fit(asked, "offline", H100, SMALL).config
    for name in stays:
        assert _at(found, name) == _at(asked, name)


def _at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_nobody_without_a_gpu_sees_one_and_the_engine_is_never_without() -> None:
    none, some = SegmentOptions(stages=STAGES), SegmentOptions(stages=STAGES, gpus=0.5)
    assert variables(none, 1, "local")["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in variables(some, 1, "local")  # Ray says which
    off = load(None, {}, ["offline.sized=false"])
    with pytest.raises(ValueError, match=r"offline\.segments\[0\] holds generate and has gpus: 0"):
        fit(off, "offline", H100, SMALL)
    cuda = load(None, {}, ["encode.device=cuda", "generate.tensor_parallel=2"])
    with pytest.raises(ValueError, match=r"encode\.device is cuda, but offline\.segments\[0\] has gpus: 0"):
        fit(cuda, "offline", A100S, SMALL)


def test_engines_of_one_gpu_start_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each asks whether enough memory is left. Those of other GPUs, in other processes, start meanwhile."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with ProcessPoolExecutor(1, get_context("fork")) as other:
        other.submit(os.getpid).result()  # forked before anything is locked
        with starting.alone():
            other.submit(_started, "1").result(timeout=10)
            second = other.submit(_started, "0")
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
        second.result(timeout=10)


def _started(gpus: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    with starting.alone():
        pass


@pytest.mark.parametrize(("free", "takes"), [(70, 40), (31, 30)])
def test_an_engine_s_cache_is_what_it_leaves_of_its_share(
    free: int, takes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever other processes take or leave meanwhile, beside an engine of the same process with 7 GiB; and
    of what is free, if that is less than the share. Made up: torch's account of a GPU of 80 GiB, and of vLLM
    the model runner and how it asks for memory."""
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_worker import Worker

    from gemel_ray.engine.vllm.worker import OwnMemory

    def asked(worker: Any) -> None:
        worker.requested_memory = worker.cache_config.gpu_memory_utilization * (80 << 30)

    reserved = [7 << 30]
    monkeypatch.setattr(Worker, "init_device", asked)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved[0])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: reserved.__setitem__(0, 8 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved[0])
    worker = OwnMemory.__new__(OwnMemory)
    worker.device, worker.vllm_config = torch.device("cuda:0"), VllmConfig()
    worker.parallel_config, worker.cache_config = (
        worker.vllm_config.parallel_config,
        worker.vllm_config.cache_config,
    )
    worker.cache_config.gpu_memory_utilization = 0.5
    passes = SimpleNamespace(profile_run=lambda: reserved.__setitem__(0, reserved[0] + (2 << 30)))
    worker.model_runner = passes
    worker.init_device()
    reserved[0] = 13 << 30  # while the weights are loaded
    assert worker.determine_available_memory() == (takes - 1 - 2 - 1) << 30
    assert (f"takes {takes}.0 GiB of its GPU, not the 40.0" in caplog.text) == (takes < 40)


@pytest.mark.gpu
def test_an_engine_starts_while_another_process_leaves_the_gpu(
    generating: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As encoders do that have nothing left to encode."""
    from gemel_ray.engine.run import Engine
    from gemel_ray.engine.vllm.worker import OwnMemory

    take = "import sys, torch; x = torch.ones(1 << 30, device='cuda'); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        measure = OwnMemory.determine_available_memory

        def left(worker: OwnMemory) -> int:
            other.communicate()
            return measure(worker)

        monkeypatch.setattr(OwnMemory, "determine_available_memory", left)
        Engine(replace(generating.engine.options, gpu_memory=0.2), generating.engine.end_token).close()
    assert other.returncode == 0


def test_only_gpus_that_are_listed_and_visible_count() -> None:
    l4, h100 = Gpu("NVIDIA L4", 22.5), Gpu("NVIDIA H100 80GB HBM3", 79.6)
    assert visible(LISTED, None) == (l4, l4, h100)
    assert visible(LISTED, "2,0") == (h100, l4)
    assert visible(LISTED, "GPU-cccc") == (h100,)
    assert visible(LISTED, "1,7,2") == (l4,)  # as CUDA does: nothing behind one that is not there
    assert visible(LISTED, "") == visible("", None) == visible("", "0") == ()


def test_a_command_that_lists_gpus_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sizing, "_for_gpus", lambda: True)
    assert len(sizing.here().gpus) == 3
    monkeypatch.setattr(sizing, "_for_gpus", lambda: False)  # the engine for CPUs cannot use them
    assert sizing.here().gpus == ()


def test_what_was_chosen_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sizing, "here", lambda: H100)
    told = list(sizing.explained(Config()))
    assert all(fits for fits, _, _ in told)
    text = "\n".join(f"{what} {line}" for _, what, line in told)
    assert "2 engines, 5 processes of the stages before, 2 on each GPU; 16 cores" in text
    assert "generate.gpu_memory 0.41" in text
    (fits, _, why), *_ = sizing.explained(load(None, {}, ["offline.sized=false"]))
    assert (fits, "has gpus: 0" in why) == (False, True)
    shown = preview(Config(), [], tmp_path, Selection())
    assert "5 x [detect encode retrieve assemble]: 2 CPUs and" in shown
    assert "2 x [generate]: 2 CPUs and 0.367 GPUs each" in shown


def test_the_size_of_a_model_s_weights_is_known_or_zero(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    (tmp_path / "config.json").write_text("{}")
    assert weights(str(tmp_path)) == pytest.approx(3 / 1024)
    assert weights("starter") > 0.2
    assert weights("nobody/has-this") == weights("three/parts/long") == 0


@pytest.mark.gpu
def test_this_machine_s_gpus_are_used_without_a_setting() -> None:
    import torch

    found = sizing.here()
    assert len(found.gpus) == torch.cuda.device_count()
    for index, card in enumerate(found.gpus):
        total = torch.cuda.get_device_properties(index).total_memory / 2**30
        assert card.gib == pytest.approx(total, rel=0.05)
    back = fit(Config(), "offline", found, SEVEN).config.offline.segments[-1]
    assert (back.workers, back.gpus) == (len(found.gpus), 0.6)


def test_a_process_collects_nothing_until_it_has_started() -> None:
    program = """
import gc
from gemel_ray.environment import fast_start
try:
    with fast_start():
        print(gc.isenabled())
        raise OSError
except OSError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\nTrue True\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process is pinned here")
def test_a_pinned_process_starts_no_threads_for_cores_that_it_may_not_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == here().cores == 1
        assert threads(0, 1.0, 1, "local") == 1
    finally:
        os.sched_setaffinity(0, allowed)
