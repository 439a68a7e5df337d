"""The plan in closed form, held against hand-made sums and against a simulation of the same machines."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.measuring.alone import FRONT, StageFigures
from gemel_ray.measuring.machine import spread
from gemel_ray.measuring.speed import bottleneck
from gemel_ray.planning.cost import NODES, Troubles, cost, table, within
from gemel_ray.planning.figures import MEASURED, Measurement, Model
from gemel_ray.planning.rates import Node, measured, scaled
from gemel_ray.planning.simulation import simulated

QUIET = Troubles(between_failures=0, spread=0.0)
USUAL = Troubles(between_failures=0, spread=0.3)


def node(**stations: float) -> Node:
    return Node(stations, price=3.0, gpus=1, cpus=8, segments=(), assumptions=(), started=100.0)


def test_the_plan_for_one_node_is_the_sum_by_hand() -> None:
    """10,000 pairs at 10 a second behind a station of 40, 100 s to start; a block of 64 passes the other
    station in 1.6 s, and half of one is the tail, 3.2 s; at 3 dollars an hour."""
    found = cost(10_000, node(generate=10.0, encode=40.0), 1, QUIET)
    assert found.hours * 3600 == pytest.approx(100 + 1.6 + 1000 + 3.2)
    assert found.money == pytest.approx(3 * 1104.8 / 3600)


@pytest.mark.parametrize(
    ("nodes", "rate", "front", "pairs"),
    list(itertools.product((1, 4, 30), (5.0, 80.0), (1.05, 1.5, 10.0), (20_000, 400_000))),
)
def test_without_failures_the_plan_is_within_a_tenth_of_the_simulation(
    nodes: int, rate: float, front: float, pairs: int
) -> None:
    machine = node(encode=front * rate, generate=rate)
    planned, seen = cost(pairs, machine, nodes, USUAL).hours, simulated(pairs, machine, nodes, USUAL)
    assert planned == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize(("nodes", "between"), list(itertools.product((1, 8, 40), (1.0, 5.0))))
def test_with_failures_the_plan_is_within_a_fifth_of_the_simulation(nodes: int, between: float) -> None:
    """Machines that fail every hour, as the cheapest rented ones may; the mean of several simulations."""
    machine, troubles = node(encode=60.0, generate=20.0), Troubles(between_failures=between)
    pairs = nodes * 500_000
    seen = [simulated(pairs, machine, nodes, troubles, seed) for seed in range(3)]
    planned = cost(pairs, machine, nodes, troubles)
    assert planned.hours == pytest.approx(sum(seen) / 3, rel=0.2)
    assert planned.hours > cost(pairs, machine, nodes, USUAL).hours


def test_a_simulation_without_spread_and_failures_is_exact() -> None:
    """Two stations of 64 pairs in 4 and in 8 s: 100 blocks leave every 8 s, the first after 12."""
    seen = simulated(6400, node(encode=16.0, generate=8.0), 1, QUIET) * 3600
    assert seen == pytest.approx(100 + 12 + 99 * 8)


def test_a_simulation_does_all_pairs_whatever_fails() -> None:
    """Failing every six minutes, and away for five: about half of the time is lost, and no pair."""
    machine = node(generate=20.0)
    troubled = simulated(100_000, machine, 3, Troubles(between_failures=0.1))
    assert troubled > 1.5 * simulated(100_000, machine, 3, USUAL)


@pytest.mark.parametrize("troubles", [QUIET, USUAL, Troubles(between_failures=20)])
def test_more_nodes_are_never_slower_and_never_cheaper_than_the_work(troubles: Troubles) -> None:
    machine = node(encode=90.0, generate=30.0)
    costs = table(5_000_000, machine, troubles)
    assert [c.nodes for c in costs] == list(NODES)
    hours = [c.hours for c in costs]
    assert hours == sorted(hours, reverse=True)
    least = 5_000_000 / 30.0 / 3600 * machine.price
    assert all(c.money > least for c in costs)


def test_the_fewest_nodes_in_time_and_the_most_for_the_money() -> None:
    machine = node(generate=30.0)
    found = within(5_000_000, machine, USUAL, hours=5.0)
    assert found is not None
    assert found.hours <= 5.0 < cost(5_000_000, machine, found.nodes - 1, USUAL).hours
    found = within(5_000_000, machine, USUAL, budget=150.0)
    assert found is not None
    assert found.money <= 150.0 < cost(5_000_000, machine, found.nodes + 1, USUAL).money
    assert within(5_000_000, machine, USUAL, budget=10.0) is None


def usual(**other: Any) -> Node:
    sizes = {"mentions": 2.0, "gpus": 4, "cpus": 48, "megabytes": 0.1, "gigabits": 10.0} | other
    return scaled(sizes.pop("gpu", "a100"), sizes.pop("model", Model()), **sizes)


def test_a_gpu_s_rate_is_the_sum_by_hand() -> None:
    """0.51 ms of the host, and 2 x 7e9 x 35 operations at 30.6% of 85% of 312 TFLOP/s, a mention; two
    mentions a pair, four GPUs."""
    a_mention = 0.00051 + 2 * 7e9 * 35 / (0.85 * 312e12 * 0.306)
    assert usual().stations["generate"] == pytest.approx(4 / (2 * a_mention))
    assert usual().bottleneck == "generate"


@pytest.mark.parametrize("seen", MEASURED, ids=str)
def test_an_h100_is_planned_as_it_was_measured(seen: Measurement) -> None:
    """Generate alone, on a whole GPU; some of it is CLIP's here. Two rates of one engine make the model; that
    of two engines, which nearly fill the GPU, is computed from it."""
    model = Model(parameters=seen.parameters)
    whole = 1 / model.seconds(989e12, seen.engines)
    assert whole == pytest.approx(seen.mentions_per_second, rel=0.01 if seen.engines == 1 else 0.1)
    cpus = 16 if (seen.engines, seen.parameters) != (1, 135e6) else 7  # cores for one engine only
    found = usual(gpu="h100", gpus=1, cpus=cpus, mentions=1.0, model=model)
    assert found.stations["generate"] == pytest.approx(seen.mentions_per_second, rel=0.25)
    assert found.segments[-1]["workers"] == seen.engines
    assert "measured on an H100 80 GB, 2026-11-28" in found.origins["generate"]


def test_the_stages_before_the_engine_need_cores() -> None:
    """16 cores, 80% of the time, 5.5 ms a mention."""
    found = usual(gpu="h100", gpus=1, cpus=16, mentions=1.0, model=Model(parameters=135e6))
    assert found.stations["retrieve (cores)"] == pytest.approx(16 * 0.8 / 0.0055)
    assert usual(cpus=16, mentions=5.0, model=Model(parameters=135e6)).bottleneck == "retrieve (cores)"


@pytest.mark.parametrize(
    "other",
    [{"gpu": "l4"}, {"model": Model(parameters=8e9)}, {"model": Model(parameters=7e9, computed=90.0)}],
)
def test_what_was_not_measured_says_that_it_is_scaled(other: dict[str, Any]) -> None:
    found = usual(**({"gpu": "h100"} | other))
    assert "scaled from an H100" in found.origins["generate"]
    assert any("scaled by operations" in said for said in found.assumptions)
    assert set(found.origins) == set(found.stations)


def test_the_bottleneck_moves() -> None:
    quick = Model(parameters=1e7, host_ms=0.5, core_ms=0.1)
    assert usual(gpu="h100", cpus=14, model=quick).bottleneck == "encode (decoding pictures)"
    assert usual(megabytes=50.0).bottleneck == "network"


def test_a_model_that_no_node_holds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13\.0 billion parameters take 24 GiB, and an l4 has 24.* more of"):
        usual(gpu="l4", gpus=1, model=Model(parameters=13e9))
    with pytest.raises(
        ValueError, match="leaves none for CLIP in a node of 2: give --gpus-per-node 3 or more"
    ):
        usual(gpu="l4", gpus=2, model=Model(parameters=13e9))


def test_an_engine_of_several_gpus_leaves_some_for_clip() -> None:
    """24 GiB on L4s of 24: two for an engine, worth 1.6, so three on eight; one for CLIP is plenty."""
    node = usual(gpu="l4", gpus=8, cpus=96, model=Model(parameters=13e9))
    a_mention = 0.00051 + 2 * 13e9 * 35 / (1.6 * 121e12 * 0.306)
    assert node.stations["generate"] == pytest.approx(3 / (2 * a_mention))
    assert node.stations["encode (GPU)"] == pytest.approx(121e12 * 0.306 / 162e9)
    front, back = node.segments
    assert (front["workers"], front["gpus"], back["workers"], back["gpus"]) == (1, 1.0, 3, 2.0)
    assert front["workers"] * front["cpus"] + back["workers"] * back["cpus"] <= 96 - 2
    assert node.generate["tensor_parallel"] == 2


def test_the_planned_configuration_can_be_loaded(tmp_path: Path) -> None:
    cut = tmp_path / "cut.yaml"
    many = ["--gpu", "l4", "--gpus-per-node", "8", "--cpus-per-node", "96", "--parameters", "13e9"]
    assert main(["plan", "--pairs", "1000000", *many, "--nodes", "3", "--config-out", str(cut)]) == 0
    config = load(cut, {}, [])
    assert config.generate.tensor_parallel == 2
    assert [(s.workers, s.gpus) for s in config.offline.segments] == [(3, 1.0), (9, 2.0)]


def test_on_large_gpus_all_encoders_of_a_node_find_memory_beside_one_engine(tmp_path: Path) -> None:
    """On a cluster Ray fills one GPU before the next, and nothing is chosen there: the file has it all."""
    file = tmp_path / "segments.yaml"
    words = ["plan", "--pairs", "5e7", "--gpu", "h100", "--gpus-per-node", "8", "--nodes", "2"]
    assert main([*words, "--config-out", str(file)]) == 0
    config = load(file, {}, [])
    front, back = config.offline.segments
    encoders = front.workers // 2  # of a node
    assert config.offline.address == "auto"
    assert 2 * encoders + 80 * config.generate.gpu_memory <= 0.95 * 80
    assert encoders * front.gpus + back.gpus <= 1
    assert config.generate.sequences == 512


def bench(folder: Path) -> Path:
    """The part of bench's report that a plan reads."""
    stages = {name: StageFigures(per_second=99.0, processes=1, core_ms=1.0) for name in FRONT}
    told = {
        "machine": {"cores": 2, "gpus": []},
        "segments": [asdict(segment) for segment in Config().offline.segments],
        "rounds": {"mentions_per_second": spread([9.0])},
        "job": {"mentions_per_second": 8.0, "seconds_to_first_batch": 50.0},
        "bottleneck": bottleneck({"mentions_per_second": spread([9.0])}, stages),
    }
    file = folder / "bench.json"
    file.write_text(json.dumps(told))
    return file


def test_what_bench_measured_is_a_node(tmp_path: Path) -> None:
    found = measured(bench(tmp_path), 2.0, 0.4)
    assert (found.rate, found.started, found.price) == (4.0, 50.0, 0.4)
    assert list(found.stations) == ["the whole graph, limited by generate"]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is not what gemel-ray bench speed --json writes"):
        measured(tmp_path / "other.json", 2.0, 0.4)


def test_the_command_prints_the_plan_and_writes_its_segments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "segments.yaml"
    common = ["plan", "--pairs", "3000000", "--gpu", "l4", "--gpus-per-node", "4", "--cpus-per-node", "48"]
    assert main([*common, "--hours", "24", "--simulate", "--config-out", str(cut)]) == 0
    said = capsys.readouterr().out
    assert "(scaled from an H100 80 GB, 2026-11-28)" in said
    assert "bottleneck: generate" in said
    assert "simulated" in said
    config = load(cut, {}, [])
    front, back = config.offline.segments
    assert 2 * back.gpus > 1  # two engines never share a GPU
    assert 48 // front.cpus * front.gpus + back.gpus <= 1  # all encoders on one leave room for its engine
    assert front.workers * front.cpus + back.workers * back.cpus <= 48
    assert front.workers < back.workers  # 24 GiB have little room beside a model of 7 billion parameters
    assert (config.offline.address, config.generate.batch_tokens, config.generate.sequences) == (
        "local", 4096, 512,
    )  # fmt: skip
    assert main([*common, "--nodes", "1", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["nodes"] for c in told["costs"]] == [1, 7]
    assert main(["plan", "--pairs", "1000", "--rates", str(bench(tmp_path))]) == 0
    assert "one node (measured)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pairs", "0"], "--pairs must be more than 0"),
        (["--pairs", "9", "--efficiency", "2"], "--efficiency is a share"),
        (
            ["--pairs", "9", "--cpus-per-node", "4", "--gpus-per-node", "4"],
            "4 encoders and 4 engines need at least 14 CPUs: give --cpus-per-node 14 or more, or fewer",
        ),
        (["--pairs", "9", "--rates", "x.json", "--budget", "5"], "--budget with --rates needs --price"),
        (["--pairs", "9", "--nodes", "0"], "--nodes are at least 1"),
        (["--pairs", "9000000000", "--hours", "0.1"], "no number of nodes from 1 to 1,000 does that"),
        (["--pairs", "9", "--rates", "nowhere.json"], "nowhere.json is not what gemel-ray bench"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_node_has_twelve_cpus_a_gpu_if_none_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--pairs", "1000000", "--gpu", "h100", "--gpus-per-node", "8", "--nodes", "1"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["node"]["cpus"] == 96
    assert main([*command, "--cpus-per-node", "12"]) == 2
    assert "give --cpus-per-node 23 or more" in capsys.readouterr().err


def test_a_price_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--pairs", "1000000", "--price", "9", "--nodes", "1"]) == 0
    assert "9 dollars a node and hour" in capsys.readouterr().out
    assert replace(usual(), price=9.0).price == 9.0
