"""Encode: a document's picture and its mentions to vectors, in one stage. Its work is in encoding.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from gemel_ray.pictures.fetching import FetchPolicy
from gemel_ray.pictures.limits import STORES, ImageLimits
from gemel_ray.setting import DEVICE, setting
from gemel_ray.stage import Stage

VECTOR = pa.list_(pa.float32())


@dataclass(frozen=True, kw_only=True)
class Encode(Stage):
    """Turns pictures and mentions into vectors.

    Each picture is read, decoded and encoded once. Its feature is cached.
    """

    work: ClassVar = "gemel_ray.stages.encoding"
    reads: ClassVar = (
        "text", "image", "image_address", "image_key", "mentions", "unread", "unread_picture",
    )  # fmt: skip
    writes: ClassVar = pa.schema(
        [
            pa.field("image_vector", VECTOR),  # CLIP's feature, the mapper's input, or null
            pa.field("mention_vectors", pa.list_(VECTOR)),  # of unit length, one per mention
            pa.field("text_vector", VECTOR),  # of unit length; null without a ranker
            pa.field("unseen", pa.string()),  # why its picture is not seen, if it is linked all the same
        ]
    )
    device: str = setting("auto", "device of CLIP and the mention encoder", form=DEVICE, machine=True)
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "number format in which they compute. On a GPU, bfloat16 is faster: give it to build",
    )
    batch: int = setting(64, "pictures in one pass of CLIP", at_least=1, unit="pictures", machine=True)
    threads: int = setting(2, "pictures decoded at once", at_least=1, unit="threads", machine=True)
    cache: int = setting(
        100_000,
        "number of pictures whose features the workspace stores for later jobs; 0: none",
        at_least=0,
        unit="pictures",
        machine=True,
    )
    unreadable: Literal["error", "text"] = setting(
        "error",
        "a document whose picture cannot be read is an error, or is linked by its text, with a note",
    )
    max_megapixels: float = setting(
        64.0,
        "largest picture; a larger one is an error of its document (decompression bombs)",
        above=0,
        unit="megapixels",
        was="megapixels",
    )
    max_megabytes: float = setting(32.0, "largest file of a picture", above=0, unit="MiB", was="megabytes")
    fetch_seconds: float = setting(
        10.0, "longest time to fetch one picture", above=0, unit="seconds", was="seconds"
    )
    min_side: int = setting(
        0, "shorter side of a picture; a smaller one is filtered", at_least=0, unit="pixels", was="smallest"
    )
    max_aspect: float = setting(
        0.0,
        "longer side over shorter; a greater one is filtered; 0: any",
        at_least=1,
        or_zero=True,
        was="aspect",
    )
    downloads: int = setting(
        32, "pictures that a worker fetches at once", at_least=1, unit="pictures", machine=True, was="fetch"
    )
    downloads_per_host: int = setting(
        4,
        "pictures that a worker fetches at once from one host",
        at_least=1,
        unit="pictures",
        machine=True,
        was="per_host",
    )
    host_interval: float = setting(
        0.0,
        "least time between two pictures from the same host, for each connection",
        at_least=0,
        unit="seconds",
        machine=True,
        was="pause",
    )
    public_hosts: bool = setting(True, "refuse pictures of private networks and of this machine")
    stores: tuple[str, ...] = setting(
        STORES, "address schemes of pictures that are allowed besides files and http(s)"
    )

    @property
    def fetch_policy(self) -> FetchPolicy:
        """Limits on requests to other servers."""
        return FetchPolicy(self.downloads, self.downloads_per_host, self.host_interval, self.public_hosts)

    @property
    def limits(self) -> ImageLimits:
        """Limits of one picture, from any source."""
        pixels, size = int(self.max_megapixels * 1e6), int(self.max_megabytes * 2**20)
        return ImageLimits(pixels, size, self.fetch_seconds, self.min_side, self.max_aspect, self.stores)
