"""The loss: minus the log-probability of a target's tokens after its prompt, under the frozen model.

Gradients reach the visual prefixes and end there; the head is computed at the target's positions only.
Common beginnings of prompts are computed once (packing.py) if attention.py supports the model. For other
models, rows are padded at the end, without a mask: in a causal model, earlier positions do not attend to the
padding, and a mask would exclude the fast kernel (ten times slower in bfloat16 on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import Cache

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import attention
from gemel_ray.training.attention import Unsupported
from gemel_ray.training.examples import Example
from gemel_ray.training.packing import Family, Ids, Pack, families, packs, positions, rows_of

Part = tuple[list[int], torch.Tensor]  # examples, and the losses of their target tokens, float32 [tokens]

# Nats. Losses of synthetic prompts are around 10; in bfloat16 another order of sums changes them by up to
# 0.4, keys of the wrong tokens by 12.
_ROUNDING = 1.0


def losses(
    model: Any,
    mapper: FeatureMapper,
    examples: Sequence[Example],
    tokens: int,
    trunk_of: Callable[[Family], Cache] | None = None,
) -> Iterator[Part]:
    """The losses of all examples, in nats, `tokens` positions computed at once; `trunk_of` returns the stored
    states of a shared beginning."""
    if attention.used_by(model):
        for family in families(examples, mapper.prefix):
            trunk = trunk_of(family) if trunk_of and len(family.trunk) else None
            for pack in rows_of(family, tokens, with_trunk=trunk is None):
                yield pack.members, _of_pack(model, mapper, pack, examples, trunk)
        return
    for part in micro_batches(examples, trained_length(mapper.prefix), tokens):
        yield part, _of_rows(model, mapper, [examples[i] for i in part])


@torch.no_grad()
def share_beginnings(model: Any, mapper: FeatureMapper) -> str | None:
    """Let `model` compute common beginnings once. If its attention does not permit this, the reason is
    returned. Checked with two synthetic prompts, which must have the same losses as separately."""
    before = model.config._attn_implementation
    pictures = np.zeros((2, mapper.linear.in_features), np.float32)
    made_up = [Example([-2, *range(3, 9), -1, last], pictures, [5, 4]) for last in (9, 2)]
    separate = torch.cat([_of_rows(model, mapper, [e]) for e in made_up])
    try:
        if not model._supports_attention_backend:
            raise Unsupported("an attention that cannot be replaced")
        model.set_attn_implementation(attention.NAME)
        pack = next(packs(made_up, mapper.prefix, 10**6))
        worst = (_of_pack(model, mapper, pack, made_up) - separate).abs().max().item()
        if not worst < (1e-3 if model.dtype == torch.float32 else _ROUNDING):
            raise Unsupported(f"losses that differ by {worst:.3f}")
    except Unsupported as why:
        model.set_attn_implementation(before)
        return str(why)
    return None


def _of_pack(
    model: Any, mapper: FeatureMapper, pack: Pack, examples: Sequence[Example], trunk: Cache | None = None
) -> torch.Tensor:
    inputs = embedded(model, mapper, [pack.ids], pack.features)
    places = torch.from_numpy(pack.places)[None].to(inputs.device)
    targets = [examples[i].target for i in pack.members]
    columns = np.concatenate(
        [end - len(t) + np.arange(len(t)) for end, t in zip(pack.ends, targets, strict=True)]
    )
    with _head_at(model, torch.zeros(len(columns), dtype=torch.long), torch.from_numpy(columns)):
        out = model(inputs_embeds=inputs, position_ids=places, use_cache=False, pack=pack, trunk=trunk)
    return _cross_entropy(out.logits[0], targets)


def _of_rows(model: Any, mapper: FeatureMapper, examples: Sequence[Example]) -> torch.Tensor:
    rows = [positions([*e.prompt, *e.target[:-1]], mapper.prefix) for e in examples]
    inputs = embedded(model, mapper, rows, [e.features for e in examples])
    targets = [e.target for e in examples]
    row = np.repeat(np.arange(len(rows)), [len(t) for t in targets])
    column = np.concatenate([len(r) - len(t) + np.arange(len(t)) for r, t in zip(rows, targets, strict=True)])
    with _head_at(model, torch.from_numpy(row), torch.from_numpy(column)):
        out = model(inputs_embeds=inputs, use_cache=False)
    return _cross_entropy(out.logits[0], targets)


def _cross_entropy(logits: torch.Tensor, targets: Sequence[Sequence[int]]) -> torch.Tensor:
    wanted = torch.tensor([t for target in targets for t in target], device=logits.device)
    return cross_entropy(logits.float(), wanted, reduction="none")


def embedded(
    model: Any,
    mapper: FeatureMapper,
    rows: Sequence[Ids],
    features: Sequence[npt.NDArray[np.float32]],
    *,
    left: bool = False,
) -> torch.Tensor:
    """The embeddings [rows, longest, width] of `rows`, in which -1 is a place of a picture; `features` has
    the pictures' features, in order. Rows are padded at the end, or (`left`) at the beginning, with token
    0."""
    longest = max(map(len, rows))
    padded = np.zeros((len(rows), longest), np.int64)
    for at, row in zip(padded, rows, strict=True):
        at[longest - len(row) if left else 0 :][: len(row)] = row
    embed = model.get_input_embeddings()
    device = embed.weight.device
    ids = torch.from_numpy(padded).to(device)
    out: torch.Tensor = embed(ids.clamp(min=0))
    if not (padded < 0).any():
        return out
    prefixes = mapper(torch.from_numpy(np.concatenate([f for f in features if len(f)])).to(device)).flatten(
        0, 1
    )
    return out.index_put((ids < 0).nonzero(as_tuple=True), prefixes.to(out.dtype))


@contextmanager
def _head_at(model: Any, row: torch.Tensor, column: torch.Tensor) -> Iterator[None]:
    """Inside, the head gets the hidden states of these places only, [1, places, width]. The model's steps
    after the head are unchanged (Gemma 2 caps the logits, Granite and Cohere scale them)."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][row, column][None],))
    try:
        yield
    finally:
        hook.remove()


def micro_batches(
    examples: Sequence[Example], length: Callable[[Example], int], tokens: int
) -> Iterator[list[int]]:
    """Indices into `examples`, in parts of similar length, of at most `tokens` positions with the padding; a
    longer example is a part by itself."""
    lengths = [length(e) for e in examples]
    part: list[int] = []
    for at in sorted(range(len(examples)), key=lambda i: (lengths[i], i)):
        if part and lengths[at] * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(at)
    if part:
        yield part


def trained_length(prefix: int) -> Callable[[Example], int]:
    """The function that counts the positions of an example in the loss."""
    return lambda e: len(e.prompt) + len(e.features) * (prefix - 1) + len(e.target) - 1


@torch.no_grad()
def item_losses(
    model: Any, mapper: FeatureMapper, examples: Sequence[Example], *, tokens: int = 8192
) -> list[float]:
    """The mean loss over each example's target tokens, in nats: equal to Hugging Face's loss with all other
    labels -100. `model` is a causal language model of transformers; `tokens` positions are computed at
    once."""
    means = [0.0] * len(examples)
    for members, part in losses(model, mapper, examples, tokens):
        sizes = [len(examples[i].target) for i in members]
        for index, token_losses in zip(members, part.split(sizes), strict=True):
            means[index] = token_losses.mean().item()
    return means
