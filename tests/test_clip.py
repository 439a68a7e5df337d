"""CLIP's vectors against open_clip's own, on tiny models of each kind of visual tower."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from operator import attrgetter
from pathlib import Path

import huggingface_hub.constants as hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gemel_ray.models.encoders import Clip, unit
from gemel_ray.models.revision import revision

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISUAL = {
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "vit_average": {
        "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
        "pool_type": "avg", "final_ln_after_pool": True,
    },
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "timm_linear": {
        "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160,
    },
    "timm_classifier": {
        "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "", "image_size": 160,
    },
    "timm_attention": {
        "timm_model_name": "test_byobnet", "timm_pool": "abs_attn", "timm_proj": "linear", "image_size": 160,
    },
}  # fmt: skip
HIDDEN = {"vit": 32, "vit_average": 32, "resnet": 256, "timm_linear": 64, "timm_classifier": 96}
PROJECTED = 24


def write_model(folder: Path, visual: str, **changes: object) -> Path:
    """A folder as open_clip writes it, with random weights from a fixed seed."""
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg = {"embed_dim": PROJECTED, "vision_cfg": VISUAL[visual], "text_cfg": TEXT, **changes}
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("clip")
    return {visual: write_model(home / visual, visual) for visual in VISUAL}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost tiny models more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clips(models: dict[str, Path]) -> Callable[..., Clip]:
    """`Clip` of a tower by name, loaded once."""
    return cache(lambda visual, feature="hidden": Clip(str(models[visual]), feature=feature))


def pictures(count: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    sizes = [(50, 40), (32, 32), (20, 90), (300, 200), (33, 31)]
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes[:count]
    ]


def own(folder: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """open_clip's model, and the pictures through its own preprocessing."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), torch.stack([preprocess(image) for image in pictures()])


def encode(clip: Clip) -> np.ndarray:
    return clip.encode_images([clip.prepare(image) for image in pictures()])


@pytest.mark.parametrize("visual", VISUAL)
def test_projected_is_open_clips_own_answer(
    clips: Callable[..., Clip], models: dict[str, Path], visual: str
) -> None:
    clip = clips(visual, "projected")
    model, batch = own(models[visual])
    with torch.inference_mode():
        expected = model.encode_image(batch).numpy()
    answer = encode(clip)
    assert answer.dtype == np.float32 and answer.shape == (5, PROJECTED) and clip.width == PROJECTED
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(np.linalg.norm(answer, axis=1) - 1).max() > 0.01, "the raw feature, not a unit vector"


@pytest.mark.parametrize("visual", HIDDEN)
def test_hidden_is_what_the_projection_takes(
    clips: Callable[..., Clip], models: dict[str, Path], visual: str
) -> None:
    clip = clips(visual)
    model, batch = own(models[visual])
    answer = encode(clip)
    assert answer.shape == (5, HIDDEN[visual]) and clip.width == HIDDEN[visual]
    projection = {
        "vit": "proj",
        "vit_average": "proj",
        "resnet": "attnpool.c_proj",
        "timm_linear": "head.proj",
        "timm_classifier": "trunk.fc",
    }[visual]
    weights = attrgetter(projection)(model.visual)
    hidden = torch.from_numpy(answer)
    with torch.inference_mode():
        projected = hidden @ weights if visual.startswith("vit") else weights(hidden)
        np.testing.assert_allclose(projected, model.encode_image(batch), rtol=1e-4, atol=1e-5)


def test_hidden_of_a_vit_is_its_class_token_after_the_last_norm(
    clips: Callable[..., Clip], models: dict[str, Path]
) -> None:
    model, batch = own(models["vit"])
    visual = model.visual
    with torch.inference_mode():
        tokens = visual.transformer(visual._embeds(batch))
        expected = visual.ln_post(tokens[:, 0])
    np.testing.assert_allclose(encode(clips("vit")), expected, rtol=1e-5, atol=1e-6)


def test_hidden_is_refused_where_it_is_not_defined(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="not defined for the visual tower TimmModel"):
        Clip(str(models["timm_attention"]), feature="hidden")


@pytest.mark.parametrize("visual", ["vit", "resnet"])
def test_a_row_does_not_depend_on_its_batch(clips: Callable[..., Clip], visual: str) -> None:
    clip = clips(visual)
    prepared = [clip.prepare(image) for image in pictures()]
    together = clip.encode_images(prepared)
    backwards = clip.encode_images(prepared[::-1])[::-1]
    alone = np.concatenate([clip.encode_images([image]) for image in prepared])
    np.testing.assert_allclose(together, backwards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert clip.encode_images([]).shape == (0, clip.width)


def test_prepare_is_open_clips_geometry_in_bytes(clips: Callable[..., Clip], models: dict[str, Path]) -> None:
    clip = clips("vit")
    _, batch = own(models["vit"])
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    for image, expected in zip(pictures(), batch, strict=True):
        prepared = clip.prepare(image)
        assert prepared.dtype == torch.uint8 and prepared.shape == (3, 32, 32)
        torch.testing.assert_close((prepared / 255 - mean) / std, expected)


def test_prepare_answers_the_same_in_many_threads(clips: Callable[..., Clip]) -> None:
    clip = clips("vit")
    images = pictures() * 20
    with ThreadPoolExecutor(8) as threads:
        prepared = list(threads.map(clip.prepare, images))
    assert all(torch.equal(one, clip.prepare(image)) for one, image in zip(prepared, images, strict=True))


@pytest.mark.parametrize("size", [(3_000_000, 1), (1, 3_000_000)])
def test_an_endless_strip_does_not_fill_the_memory(clips: Callable[..., Clip], size: tuple[int, int]) -> None:
    # Scaled up to 32 pixels of height it would have 3 billion of them.
    strip = Image.new("RGB", size, (10, 200, 30))
    prepared = clips("vit").prepare(strip)
    assert prepared.shape == (3, 32, 32)
    assert prepared.reshape(3, -1).unique(dim=1).flatten().tolist() == [10, 200, 30]


def test_texts_are_unit_vectors_in_the_projected_space(
    clips: Callable[..., Clip], models: dict[str, Path]
) -> None:
    clip = clips("vit")
    texts = ["Paris", "", "a much longer text " * 20] * 100  # more than one pass
    vectors = clip.encode_texts(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (300, PROJECTED) and clip.text_width == PROJECTED
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    model, _ = own(models["vit"])
    tokenize = open_clip.get_tokenizer(f"local-dir:{models['vit']}")
    with torch.inference_mode():
        expected = model.encode_text(tokenize(texts[:3]), normalize=True)
    np.testing.assert_allclose(vectors[:3], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[-3:], expected, rtol=1e-4, atol=1e-5)
    assert clip.encode_texts([]).shape == (0, PROJECTED)


@pytest.mark.parametrize(
    ("visual", "feature"), [("vit", "hidden"), ("resnet", "hidden"), ("timm_linear", "projected")]
)
def test_bfloat16_answers_nearly_the_same(
    clips: Callable[..., Clip], models: dict[str, Path], visual: str, feature: str
) -> None:
    full = encode(clips(visual, feature))
    half = encode(Clip(str(models[visual]), feature=feature, dtype="bfloat16"))
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    assert (unit(full) * unit(half)).sum(1).min() > 0.99


def test_unit_keeps_zeros_and_gives_cosines() -> None:
    vectors = unit(np.array([[3, 4], [0, 0], [1e-15, 0]], np.float32))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


# Names


@pytest.fixture
def tiny_architecture(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model as an architecture that open_clip knows by name."""
    config = json.loads((models["vit"] / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    return "tiny"


def test_an_architecture_takes_its_weights_from_a_checkpoint_file(
    models: dict[str, Path], tiny_architecture: str
) -> None:
    file = models["vit"] / "open_clip_model.safetensors"
    clip = Clip(f"{tiny_architecture}/{file}", feature="hidden")
    model, _ = own(models["vit"])
    assert torch.equal(clip._model.visual.conv1.weight, model.visual.conv1.weight)
    assert revision(clip.name) == f"tiny/{revision(str(file))}"


@pytest.mark.parametrize("quick", [True, False])
def test_a_tags_activation_is_used(
    models: dict[str, Path], tiny_architecture: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ViT-L-14/openai needs QuickGELU; open_clip only warns and would compute another feature.
    assert open_clip.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"]
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny", {"tagged": {"url": "", "quick_gelu": quick}}
    )
    file = str(models["vit"] / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: file)
    clip = Clip("tiny/tagged", feature="hidden")
    activation = clip._model.visual.transformer.resblocks[0].mlp.gelu
    assert type(activation).__name__ == ("QuickGELU" if quick else "GELU")
    assert revision(clip.name) == "tiny/tagged"


def test_a_repository_of_the_hub_is_loaded_from_its_cache(
    clips: Callable[..., Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--house--tiny"
    write_model(cached / "snapshots" / commit, "vit")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    for setting, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(hub, setting, value)
    clip = Clip("hf-hub:house/tiny", feature="hidden")
    np.testing.assert_array_equal(encode(clip), encode(clips("vit")))
    assert revision(clip.name) == "hf-hub:house/tiny@0123456789ab"


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-L-14/nosuchtag", "models/absent", "nonsense", ""])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no CLIP model"):
        Clip(name, feature="hidden")


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no open_clip_config\.json"):
        Clip(str(tmp_path), feature="hidden")


def test_a_folder_without_weights_is_refused_not_drawn_at_random(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "vit")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="weights"):
        Clip(str(folder), feature="hidden")


@pytest.mark.parametrize("wrong", [{"feature": "raw"}, {"feature": "hidden", "dtype": "int8"}])
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"not '(raw|int8)'"):
        Clip("anything", **wrong)


def test_the_revision_follows_the_content_alone(models: dict[str, Path], tmp_path: Path) -> None:
    copy = write_model(tmp_path / "elsewhere", "vit")
    assert revision(str(copy)) == revision(str(models["vit"]))
    (copy / "README.md").write_text("does not change an answer")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "times.json").write_text("{}")
    assert revision(str(copy)) == revision(str(models["vit"]))
    weights = copy / "open_clip_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert revision(str(copy)) != revision(str(models["vit"]))


def test_importing_is_cheap() -> None:
    program = """
import sys
import gemel_ray.models.encoders, gemel_ray.models.encoders, gemel_ray.pictures.images
heavy = ("torch", "open_clip", "transformers", "torchvision", "fsspec")
print([name for name in heavy if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
