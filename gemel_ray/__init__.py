"""GEMEL as a system: name the people, places and things that image-caption pairs mention.

    import gemel_ray

    with gemel_ray.Linker("my-workspace") as linker:      # the models in this process
        linker.link("Adobe opened an office.", mentions=["Adobe"])
    with gemel_ray.Client("http://127.0.0.1:8000") as client:  # or an endpoint's
        client.link("Adobe opened an office.", mentions=["Adobe"])

Everything else is internal, and may change. What is imported here loads when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemel_ray.checked import ConfigError
    from gemel_ray.client import Client, ServerError
    from gemel_ray.engine.run import EngineDied
    from gemel_ray.errors import GemelError, GraphError, WorkspaceError
    from gemel_ray.in_process import Linker
    from gemel_ray.pictures.limits import ImageError
    from gemel_ray.stores import StoreError

_PLACES = {
    "Client": "client",
    "ConfigError": "checked",
    "EngineDied": "engine.run",
    "GemelError": "errors",
    "GraphError": "errors",
    "ImageError": "pictures.limits",
    "Linker": "in_process",
    "ServerError": "client",
    "StoreError": "stores",
    "WorkspaceError": "errors",
}
__all__ = [
    "Client",
    "ConfigError",
    "EngineDied",
    "GemelError",
    "GraphError",
    "ImageError",
    "Linker",
    "ServerError",
    "StoreError",
    "WorkspaceError",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
