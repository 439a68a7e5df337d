"""The app of a configuration and a workspace, over a linker that is given."""

from __future__ import annotations

import os

from fastapi import FastAPI

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.pictures.web import Web
from gemel_ray.serving.app import Endpoint, create
from gemel_ray.serving.desk import Desk
from gemel_ray.serving.door import Door, keys
from gemel_ray.serving.front_page import CurrentBank, Page
from gemel_ray.serving.linker import Linker
from gemel_ray.serving.meters import Meters
from gemel_ray.serving.pictures import Pictures


def endpoint(config: Config, workspace: Workspace, linker: Linker) -> Endpoint:
    """What the routes need. Keys are read from the environment: they stand in no file and no log. Raises
    ValueError for one that nobody could send."""
    online = config.online
    web = Web(config.encode.limits, online.image_hosts)
    known = {"fingerprint": config.fingerprint(workspace.version), "knowledge": workspace.knowledge}
    return Endpoint(
        desk=Desk(linker, online, Meters(), known),
        limits=online,
        pictures=Pictures(web.fetch, int(online.megabytes * 2**20)),
        page=Page(CurrentBank(workspace)),
        door=Door(keys(os.environ), online.hosts),
    )


def app(config: Config, workspace: Workspace, linker: Linker) -> FastAPI:
    """The app itself."""
    return create(endpoint(config, workspace, linker))
