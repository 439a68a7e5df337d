"""The engine's inputs and outputs: prompts, the options of a rollout, and results.

Prompts are built in the engine's process: embeddings of token ids, with visual prefixes in their places. The
prefixes of the bank's pictures are computed once, in one pass. Besides its embeddings a prompt has an
*identity*, one number per position: the token, or a digest of the picture. The engine's prefix cache uses it
as the key, so it need not read a megabyte of embeddings, and an extended prompt keeps the hashes of the
shorter one. Knows nothing of vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.knowledge.bank import QUERY_IMAGE, image_of

if TYPE_CHECKING:
    from gemel_ray.knowledge.bank import Bank
    from gemel_ray.models.mapper import FeatureMapper

_CHUNK = 4096
_QUERIES = 1024  # pictures whose prefixes are kept
Path = tuple[int, ...]
_Prefix = tuple[torch.Tensor, npt.NDArray[np.int64]]  # a picture's, and its identity
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """embeddings [tokens, width]; identity int64 [tokens]: prompts with equal beginnings have identities with
    equal beginnings.

    The first `base` tokens are the original prompt; the others were added to it. `hashes` are those of the
    identity's whole blocks, each over all before it; the engine fills them when it needs them
    (vllm/rollouts.py).
    """

    embeddings: torch.Tensor
    identity: npt.NDArray[np.int64]
    base: int
    hashes: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True, slots=True, eq=False)
class TokenPrompt:
    """A prompt as token ids, int64 [tokens], and the `pictures` that replace some of them: the place, and
    vectors [prefix, width]. `identity`: see Prompt."""

    ids: npt.NDArray[np.int64]
    identity: npt.NDArray[np.int64]
    pictures: tuple[tuple[int, torch.Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> tuple[npt.NDArray[np.int64], list[tuple[int, torch.Tensor]]]:
        """The ids from `start` to `end`, and the pictures that replace some of them."""
        over = [
            (max(place, start) - start, vectors[max(start - place, 0) : end - place])
            for place, vectors in self.pictures
            if place < end and place + len(vectors) > start
        ]
        return self.ids[start:end], over


class PromptEmbeddings:
    """Makes prompts. `embed` returns the language model's embeddings of ids, [n, width]; `mapper` None: no
    prefixes."""

    def __init__(
        self,
        embed: Callable[[Sequence[int] | npt.NDArray[np.int64]], torch.Tensor],
        mapper: FeatureMapper | None,
        bank: Bank,
        former: PromptEmbeddings | None = None,
    ) -> None:
        self._embed, self._mapper, self._bank = embed, mapper, bank
        self._dtype = embed([0]).dtype
        self._identities: dict[int, npt.NDArray[np.int64]] = {}  # by row of the bank's pictures
        self._queries: dict[bytes, _Prefix] = {}  # by digest, the latest last
        self._prefixes = self._all_mapped(former) if mapper is not None else None

    def _all_mapped(self, former: PromptEmbeddings | None) -> torch.Tensor:
        """The prefixes of the bank's pictures. In the next version of a bank, new pictures are after the
        others."""
        vectors = self._bank.image_vectors
        if former is None or former._prefixes is None or not _same(self._mapper, former._mapper):
            return self._mapped(vectors)
        known = former._bank.image_vectors
        if not np.array_equal(vectors[: len(known)], known):
            return self._mapped(vectors)
        new = vectors[len(known) :]
        return torch.cat([former._prefixes, self._mapped(new)]) if len(new) else former._prefixes

    def _mapped(self, vectors: npt.NDArray[np.float32]) -> torch.Tensor:
        assert self._mapper is not None
        with torch.inference_mode():
            parts = [
                self._mapper(torch.from_numpy(np.array(vectors[i : i + _CHUNK], np.float32))).to(self._dtype)
                for i in range(0, len(vectors), _CHUNK)
            ]
        return torch.cat(parts) if parts else torch.empty(0)

    def __call__(self, prompt: npt.ArrayLike, image: npt.ArrayLike | None) -> Prompt:
        """The engine's input for a prompt of Assemble; `image` is the query's feature."""
        tokens = self.tokens(prompt, image)
        embeddings = self._embed(tokens.ids)
        for place, prefix in tokens.pictures:
            embeddings[place : place + len(prefix)] = prefix
        return Prompt(embeddings, tokens.identity, len(embeddings))

    def tokens(self, prompt: npt.ArrayLike, image: npt.ArrayLike | None) -> TokenPrompt:
        """The prompt as token ids, without embeddings."""
        numbers = np.asarray(prompt, np.int64)
        identity: list[npt.NDArray[np.int64]] = []
        pictures: list[tuple[int, torch.Tensor]] = []
        done = tokens = 0
        for place in np.flatnonzero(numbers < 0):
            prefix, known_by = self._prefix(int(numbers[place]), image)
            identity += [numbers[done:place], known_by]
            tokens += int(place) - done
            pictures.append((tokens, prefix))
            done, tokens = int(place) + 1, tokens + len(prefix)
        whole = np.concatenate([*identity, numbers[done:]])
        return TokenPrompt(np.maximum(whole, 0), whole, tuple(pictures))

    def map(self, pictures: Iterable[npt.NDArray[np.float32] | None]) -> None:
        """Compute the prefixes of queries' pictures, [feature] each, in one pass over the mapper's weights.
        Prompts that are made soon need not compute them one by one."""
        if self._mapper is None:
            return
        given = {_digest(picture): picture for picture in pictures if picture is not None}
        self._queries |= self._mapped_queries({d: f for d, f in given.items() if d not in self._queries})
        for digest in [*self._queries][: max(0, len(self._queries) - _QUERIES)]:
            del self._queries[digest]

    def _mapped_queries(self, features: dict[bytes, npt.NDArray[np.float32]]) -> dict[bytes, _Prefix]:
        prefixes = self._mapped(np.stack([*features.values()])) if features else ()
        return {d: (made, _identity(d, len(made))) for d, made in zip(features, prefixes, strict=True)}

    def _prefix(self, reference: int, image: npt.ArrayLike | None) -> _Prefix:
        assert self._prefixes is not None
        if reference == QUERY_IMAGE:
            feature = np.asarray(image, np.float32)
            digest = _digest(feature)
            return self._queries.get(digest) or self._mapped_queries({digest: feature})[digest]
        row = self._bank.image_row(image_of(reference))
        if row not in self._identities:
            digest = _digest(self._bank.image_vectors[row])
            self._identities[row] = _identity(digest, len(self._prefixes[row]))
        return self._prefixes[row], self._identities[row]

    def extended(self, prompt: Prompt, path: Sequence[int]) -> Prompt:
        """`prompt`, extended by the tokens of `path`."""
        if not path:
            return prompt
        embeddings = torch.cat([prompt.embeddings, self._embed(path)])
        return Prompt(embeddings, np.append(prompt.identity, path), prompt.base, prompt.hashes.copy())


def _identity(digest: bytes, length: int) -> npt.NDArray[np.int64]:
    """The identity of a picture's visual prefix: its feature's digest, as negative numbers, unlike tokens."""
    return np.resize(np.frombuffer(digest, np.int64), length) | np.int64(-(2**63))


def _digest(feature: npt.NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.asarray(feature, np.float32).tobytes(), digest_size=32).digest()


def _same(one: FeatureMapper | None, other: FeatureMapper | None) -> bool:
    """Whether both write the same prefixes."""
    if one is None or other is None:
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@dataclass(frozen=True, slots=True)
class Step:
    """The model's result at one node: the allowed tokens, best first, and their log-probabilities."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOptions:
    """A rollout: greedy from `node` of the prefix tree in the folder `tree` until a name ends or `limit`
    tokens, reporting the `wide` best tokens of every step. `keep` and `after`: see vllm/holds.py."""

    tree: Folder
    node: int
    limit: int
    wide: int
    renormalise: bool = True
    keep: int = 0
    after: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished name: its leaf, the sum of its tokens' log-probabilities, and the score by which it is
    ranked."""

    leaf: int
    log_prob: float
    score: float


def probabilities(candidates: Sequence[Candidate]) -> list[float]:
    """The softmax of the scores of all kept candidates."""
    top = max(c.score for c in candidates)
    weights = [math.exp(c.score - top) for c in candidates]
    total = sum(weights)
    return [w / total for w in weights]


@dataclass(slots=True)
class Usage:
    """Prompt tokens asked of the engine, and those of them that were in its cache; tokens of names that it
    computed; vLLM's requests (a search in rounds makes none)."""

    asked: int = 0
    cached: int = 0
    decoded: int = 0
    requests: int = 0


class Outcome(Generic[T]):
    """A result, or an exception: awaited as `future` in the event loop that makes it, settled in the engine's
    thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def settle(self, outcome: T | Exception) -> None:
        settle([(self, outcome)])

    def _set(self, outcome: T | Exception) -> None:
        if self.future.done():  # its caller was cancelled meanwhile
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


def settle(outcomes: Sequence[tuple[Outcome[T], T | Exception]]) -> None:
    """Settle several outcomes, and wake every event loop that waits for them once."""
    for loop in {outcome._loop for outcome, _ in outcomes}:
        of_loop = [(outcome, result) for outcome, result in outcomes if outcome._loop is loop]
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits
            loop.call_soon_threadsafe(_set, of_loop)


def _set(outcomes: Sequence[tuple[Outcome[T], T | Exception]]) -> None:
    for outcome, result in outcomes:
        outcome._set(result)
