"""A snapshot of every collection of a Qdrant server, and the oldest ones away. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import urllib.request
from typing import Any
from urllib.parse import quote

_LONGEST = 3600  # seconds that one snapshot may take


def ask(method: str, url: str) -> Any:
    """The result of one call. OSError where the server refuses or does not answer."""
    request = urllib.request.Request(url, method=method, headers={"api-key": os.environ["QDRANT_API_KEY"]})
    with urllib.request.urlopen(request, timeout=_LONGEST) as answer:
        return json.load(answer)["result"]


def snapshot(server: str, keep: int) -> list[str]:
    """Names of the new snapshots; of each collection the newest `keep` stay."""
    made = []
    for collection in ask("GET", f"{server}/collections")["collections"]:
        url = f"{server}/collections/{quote(collection['name'], safe='')}/snapshots"
        made.append(ask("POST", url)["name"])
        found = sorted(ask("GET", url), key=lambda s: s["creation_time"])
        for old in found[:-keep]:
            ask("DELETE", f"{url}/{quote(old['name'], safe='')}")
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", metavar="URL")
    parser.add_argument("--keep", type=int, default=7)
    options = parser.parse_args()
    print("\n".join(snapshot(options.server, max(1, options.keep))))
