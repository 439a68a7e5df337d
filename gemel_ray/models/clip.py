"""CLIP: pictures and texts to vectors. The only file that knows open_clip.

A picture's vector is either *hidden*, the input of the visual tower's last
projection (GEMEL's mapper was trained on ViT-L/14's 1024 numbers), or *projected*,
its output, in the space of the texts. Pictures come decoded (pictures/images.py);
this file knows nothing of files, mentions, or what the vectors are for.
Importing it is cheap: torch and open_clip are loaded by the first `Clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
Feature = Literal["hidden", "projected"]

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
WEIGHTS_AND_CONFIGURATION = {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model"}
TEXTS_AT_ONCE = 256
LONGEST = 64  # a longer side is cropped to this many times the shorter one


class Clip:
    """A frozen CLIP model.

    name: a folder in open_clip's form, `ARCHITECTURE/TAG` (ViT-L-14/openai),
    `ARCHITECTURE/CHECKPOINT.pt` or `hf-hub:ORG/REPOSITORY`. OpenAI's weights need
    an architecture with QuickGELU: a tag implies it, a checkpoint file needs it in
    the name (ViT-L-14-quickgelu/FILE).
    dtype: float32, bfloat16 or float16. device: auto, cpu, cuda, cuda:1...
    Raises ValueError if there is no such model, or the feature is not defined for it.
    """

    def __init__(self, name: str, *, feature: Feature, dtype: str = "float32", device: str = "auto") -> None:
        import open_clip

        if feature not in ("hidden", "projected"):
            raise Mistake(f"CLIP's feature is hidden or projected, not {feature!r}")
        if dtype not in PRECISIONS:
            raise Mistake(f"CLIP's dtype is one of {', '.join(PRECISIONS)}, not {dtype!r}")
        self.name = name
        model_name, weights = located(name)
        tag = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
        self._device = torch_device(device)
        self._dtype = open_clip.get_input_dtype(PRECISIONS[dtype])
        self._model: Any = open_clip.create_model(
            model_name,
            pretrained=weights,
            precision=PRECISIONS[dtype],
            device=self._device,
            # open_clip only warns when a tag's weights need another activation than the architecture's.
            force_quick_gelu=bool(tag.get("quick_gelu")),
            require_pretrained=True,
        ).eval()
        if feature == "hidden":
            remove_projection(self._model.visual)
        self._tokenize: Any = open_clip.get_tokenizer(model_name)
        settings = open_clip.transform.PreprocessCfg(**self._model.visual.preprocess_cfg)
        # open_clip's steps: the geometry for each picture, the arithmetic for the whole batch.
        every_step = open_clip.transform.image_transform_v2(settings, is_train=False).transforms
        *self._steps, _to_tensor, self._normalise = every_step
        # Pixels of the model's input side: decoding more than twice as many is wasted.
        self.side = max(settings.size) if isinstance(settings.size, list | tuple) else settings.size
        self.width = self._probe()

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The picture in the model's geometry: uint8 [3, height, width]. Thread-safe."""
        from torchvision.transforms.functional import pil_to_tensor

        image = crop_extreme_aspect(image)
        for step in self._steps:
            image = step(image)
        return pil_to_tensor(image)

    def encode_images(self, images: Sequence[torch.Tensor]) -> Vectors:
        """Prepared pictures to float32 [n, width], not normalised; one forward pass for all."""
        import torch

        if not images:
            return np.empty((0, self.width), np.float32)
        with torch.inference_mode():
            pixels = torch.stack(list(images)).to(self._device).float().div(255)
            features = self._model.encode_image(self._normalise(pixels).to(self._dtype), normalize=False)
        return as_array(features)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts to float32 [n, text_width] of unit length, in the space of the projected pictures."""
        import torch

        if not texts:
            return np.empty((0, self.text_width), np.float32)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = self._tokenize(list(texts[start : start + TEXTS_AT_ONCE])).to(self._device)
                parts.append(as_array(self._model.encode_text(tokens, normalize=False)))
        return unit(np.concatenate(parts))

    @cached_property
    def text_width(self) -> int:
        """The width of a text's vector."""
        return int(self.encode_texts(["a"]).shape[1])

    def _probe(self) -> int:
        """The image vector's width, by encoding a blank picture."""
        features = self.encode_images([self.prepare(Image.new("RGB", (64, 64)))])
        if features.ndim != 2:
            raise Mistake(
                f"{self.name} answers an image with shape {features.shape[1:]}, not with one vector"
            )
        return int(features.shape[1])


def located(name: str) -> tuple[str, str | None]:
    """open_clip's model name, and the tag or checkpoint file beside it."""
    import open_clip

    if name and Path(name).is_dir():
        if not (Path(name) / "open_clip_config.json").is_file():
            raise Mistake(f"{name} is not a folder of open_clip's: it has no open_clip_config.json")
        return f"local-dir:{name}", None
    if name.startswith("hf-hub:"):
        return name, None
    architecture, _, weights = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in open_clip.list_models() or not (weights in tags or Path(weights).is_file()):
        raise Mistake(
            f"no CLIP model {name!r}: it is neither a folder, nor hf-hub:ORG/REPOSITORY, nor an "
            f"architecture of open_clip with a checkpoint file or a tag"
            + (f" ({', '.join(tags[:12])})" if tags else "")
        )
    return architecture, weights


def remove_projection(visual: torch.nn.Module) -> None:
    """Make a visual tower return the input of its last projection.

    In a ModifiedResNet that projection is the attention pooling's output map:
    hidden is the pooled heads side by side, before it (2048 wide in RN50).
    Raises ValueError for a tower whose last projection is not known.
    """
    import torch
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        visual.proj = None
    elif isinstance(visual, ModifiedResNet):
        # multi_head_attention_forward needs a map: the identity leaves the heads unchanged.
        weight = visual.attnpool.c_proj.weight
        plain = torch.nn.Linear(weight.shape[1], weight.shape[1]).to(weight)
        torch.nn.init.eye_(plain.weight)
        torch.nn.init.zeros_(plain.bias)
        visual.attnpool.c_proj = plain
    elif isinstance(visual, TimmModel) and "pool" not in dict(visual.head.named_children()):
        if len(visual.head):
            visual.head = torch.nn.Sequential()
        elif visual.trunk.num_classes:  # the trunk's classifier serves as the projection
            visual.trunk.reset_classifier(0)
    else:
        raise Mistake(
            f"the hidden feature is not defined for the visual tower {type(visual).__name__}"
            " of this shape: use the projected one"
        )


def crop_extreme_aspect(image: Image.Image) -> Image.Image:
    """The picture, or the middle of an extremely long one.

    CLIP's geometry scales the shorter side up to its input and keeps the middle:
    a strip one pixel high would grow to terabytes on the way.
    """
    width, height = image.size
    longest = LONGEST * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def unit(vectors: Vectors) -> Vectors:
    """Rows [n, width] scaled to length 1, for cosines as dot products; a row of zeros is kept."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-30)).astype(np.float32, copy=False)
    return scaled


def as_array(features: torch.Tensor) -> Vectors:
    """A tensor of any float dtype and device as a float32 array."""
    array: Vectors = features.float().cpu().numpy()
    return array


def torch_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
