"""The frozen encoders: CLIP for pictures, a text encoder for mentions; and the language model's tokenizer.

A picture's vector is either *hidden*, the input of the visual tower's last projection (GEMEL's mapper was
trained on ViT-L/14's 1024 numbers), or *projected*, its output, in the space of the texts. Importing this is
cheap: torch, open_clip and transformers are loaded by the first model. The only file that knows open_clip.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vectors = NDArray[np.float32]
Feature = Literal["hidden", "projected"]

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
TEXTS_AT_ONCE = 128  # in one pass
_LONGEST_SIDE = 64  # a longer side is cropped to this many times the shorter one


class Clip:
    """A frozen CLIP model.

    name: a folder in open_clip's form, `ARCHITECTURE/TAG` (ViT-L-14/openai), `ARCHITECTURE/CHECKPOINT.pt` or
    `hf-hub:ORG/REPOSITORY`. OpenAI's weights need an architecture with QuickGELU: a tag implies it, a
    checkpoint file needs it in the name (ViT-L-14-quickgelu/FILE).
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
            raise Mistake(f"{self.name} answers an image with {features.shape[1:]}, not with one vector")
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
    longest = _LONGEST_SIDE * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def unit(vectors: Vectors) -> Vectors:
    """Rows [n, width] scaled to length 1, for cosines as dot products; a row of zeros is kept."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)


def as_array(features: torch.Tensor) -> Vectors:
    """A tensor of any float dtype and device as a float32 array."""
    return np.asarray(features.float().cpu().numpy())


def torch_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


# Mention strings to unit vectors, by any Hugging Face or sentence-transformers encoder.
#
# Reads what a sentence-transformers folder states about itself (modules.json, 1_Pooling/config.json,
# sentence_bert_config.json) without that package; a plain encoder such as SimCSE answers with its pooler.
# Prompts that some models want before a text are the caller's.


Pooling = Literal["auto", "pooler", "mean", "cls"]

_LONGEST_TEXT = 512  # tokens, where the model states no length


class MentionEncoder:
    """A frozen text encoder.

    name: a folder or a Hugging Face repository. pooling: `auto` is what the model states, else its trained
    pooler, else the mean over its tokens. dtype and device as of Clip.
    Raises ValueError for a pooling or a last layer that is not computed here, and for weights that lack a
    part of the model.
    """

    def __init__(
        self, name: str, *, pooling: Pooling = "auto", dtype: str = "float32", device: str = "auto"
    ) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if dtype not in PRECISIONS:
            raise Mistake(f"the mention encoder's dtype is one of {', '.join(PRECISIONS)}, not {dtype!r}")
        self.name = name
        subfolder, stated = stated_layers(name)
        model, loaded = AutoModel.from_pretrained(
            name, subfolder=subfolder, dtype=getattr(torch, dtype), output_loading_info=True
        )
        lacking = sorted(loaded["missing_keys"])
        if others := [key for key in lacking if not key.startswith("pooler.")]:
            raise Mistake(f"the weights of {name} lack {len(others)} parts, the first {others[0]}")
        has_pooler = getattr(model, "pooler", None) is not None and not lacking
        self.pooling = chosen_pooling(name, pooling, stated, has_pooler)
        self._device = torch_device(device)
        self._model: Any = model.to(self._device).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
        self._longest = longest_input(name, subfolder, model, self._tokenizer)
        self.width = int(model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Texts to float32 [n, width] of unit length; equal texts are computed once.

        Texts longer than the model takes are cut at the end.
        """
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.empty((0, self.width), np.float32)
        tokens = self._tokenizer(unique, truncation=True, max_length=self._longest)["input_ids"]
        by_length = sorted(range(len(unique)), key=lambda i: len(tokens[i]))
        vectors = np.empty((len(unique), self.width), np.float32)
        for start in range(0, len(unique), TEXTS_AT_ONCE):
            rows = by_length[start : start + TEXTS_AT_ONCE]
            vectors[rows] = self._forward([tokens[i] for i in rows])
        position = {text: i for i, text in enumerate(unique)}
        return unit(vectors)[[position[text] for text in texts]]

    def _forward(self, tokens: list[list[int]]) -> Vectors:
        """Token ids, rows of differing length, to pooled float32 [n, width]."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(row) for row in tokens]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            answer = self._model(input_ids=ids, attention_mask=mask)
            if self.pooling == "pooler":
                return as_array(answer.pooler_output)
            states = answer.last_hidden_state.float()
            if self.pooling == "cls":
                return as_array(states[:, 0])
            weights = mask[:, :, None].float()
            return as_array((states * weights).sum(1) / weights.sum(1).clamp(min=1))


def chosen_pooling(name: str, wanted: Pooling, stated: str | None, has_pooler: bool) -> str:
    """The pooling to compute; raises ValueError if the model or this file cannot."""
    usual = stated or ("pooler" if has_pooler else "mean")
    pooling = usual if wanted == "auto" else wanted
    if pooling not in ("pooler", "mean", "cls"):
        raise Mistake(f"{name} wants the pooling {pooling!r}; only pooler, mean and cls are computed")
    if pooling == "pooler" and not has_pooler:
        raise Mistake(f"{name} has no trained pooler: choose the pooling mean or cls")
    return pooling


def stated_layers(name: str) -> tuple[str, str | None]:
    """The subfolder that holds the transformer, and the pooling, as the model states them."""
    modules = read_json(name, "modules.json")
    if modules is None:
        settings = read_json(name, "1_Pooling/config.json")
        return "", None if settings is None else pooling_mode(settings)
    subfolder, pooling = "", None
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Transformer":
            subfolder = module["path"]
        elif kind == "Pooling":
            pooling = pooling_mode(read_json(name, f"{module['path']}/config.json") or {})
        elif kind != "Normalize":
            raise Mistake(f"{name} ends in a layer {kind}, which is not computed here")
    return subfolder, pooling


def pooling_mode(settings: dict[str, Any]) -> str:
    """A pooling's name, from either form of its configuration."""
    modes = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, on in settings.items()
        if key.startswith("pooling_mode_") and on
    ]
    return modes if isinstance(modes, str) else " + ".join(modes) or "mean"


def longest_input(
    name: str, subfolder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """How many tokens the model takes: the smallest limit of its parts."""
    settings = read_json(name, "/".join(filter(None, [subfolder, "sentence_bert_config.json"]))) or {}
    stated = [settings.get("max_seq_length"), tokenizer.model_max_length]
    if places := getattr(model.config, "max_position_embeddings", None):
        # RoBERTa counts positions from after its padding index: two of its 514 are never used.
        positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        padding = getattr(positions, "padding_idx", None)
        stated.append(places if padding is None else places - padding - 1)
    return int(min([n for n in stated if n and n < 10**6], default=_LONGEST_TEXT))


def read_json(name: str, file: str) -> Any:
    """A JSON file of a folder or a Hugging Face repository; None where it has none."""
    from transformers.utils import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


# The language model's tokenizer, without its template: pieces of text to token ids, never back.


@lru_cache(maxsize=2)  # versions of a workspace that are open at once share one
def load_tokenizer(model: str) -> Tokenizer:
    """The language model's tokenizer. transformers, which takes 300 MiB, is loaded only if a model has no
    tokenizer.json and must be converted."""
    from tokenizers import Tokenizer

    file = Path(model) / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a text that spells them out is plain text
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text alone, without BOS."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def end_token(model: str, end_of_name: str) -> int:
    """The token of language model `model` that ends every name."""
    if end_of_name == "newline":
        return tokenize(load_tokenizer(model), ["\n"])[0][-1]
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(model).eos_token_id)


@lru_cache(maxsize=2)
def language_config(model: str) -> Any:
    """The configuration of language model `model`."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model)


def longest_context(model: str) -> int:
    """Tokens that language model `model` takes at most."""
    return int(getattr(language_config(model), "max_position_embeddings", 1 << 30))
