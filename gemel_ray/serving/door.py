"""Who may ask at all: by the Host and Origin of a request, its path and its key. Raises Fault.

With keys every path needs one but those in OPEN, so a route that is added later is closed until it is listed.
Host and Origin are checked because a page of another site can send a visitor's browser here: under a name of
its own that suddenly leads here (DNS rebinding), or by a form.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from ipaddress import IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gemel_ray.errors import Mistake
from gemel_ray.serving.faults import Fault

KEYS = "GEMEL_RAY_API_KEY"
OPEN = ("", "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")  # they say nothing of a request
_FILES = "/page/"  # of the two pages


def keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys, one a caller, with commas between them; none where the variable is not set. Raises ValueError
    for what nobody could send in a header, which would look like a key and be none."""
    if KEYS not in environment:
        return ()
    found = tuple(environment[KEYS].split(","))
    for key in found:
        if not key:
            raise Mistake(f"{KEYS} holds an empty key; leave the variable out where everybody may ask")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise Mistake(
                f"{KEYS} holds a space, a line break or another character that no header can carry; "
                "a file's last line break is one (kubectl create secret --from-file keeps it)"
            )
    return found


def route(scope: Mapping[str, Any]) -> str:
    """The path behind the prefix under which the app is mounted, as its router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    inside = root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")
    return path[len(root) :] if inside else path


@dataclass(frozen=True)
class Door:
    """Without `keys` everybody may ask. `hosts` are patterns of names, beside IP addresses and names without
    a dot, which nobody can register."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def admit(self, scope: Mapping[str, Any]) -> str:
        """Who asks: the number of the key where there are several, else the address."""
        headers = Headers(raw=scope["headers"])
        self._addressed(headers.get("host", ""), headers.get("origin"))
        path = route(scope)
        if not self.keys or path in OPEN or path.startswith(_FILES):
            return caller(scope)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode() if scheme.lower() == "bearer" else b""
        fitting = [n for n, key in enumerate(self.keys) if hmac.compare_digest(sent, key.encode())]
        if not fitting:
            raise Fault("unauthorized", "this endpoint needs its API key: Authorization: Bearer KEY")
        return f"key {fitting[0]}" if len(self.keys) > 1 else caller(scope)

    def _addressed(self, host: str, origin: str | None) -> None:
        if not self._ours(_name(host)):
            raise Fault("forbidden", f"it is not asked by the name {host!r:.80} (online.hosts)")
        if origin is None:
            return
        place = origin.partition("://")[2]
        if not place or (_plain(place) != _plain(host) and not self._listed(_name(place))):
            raise Fault("forbidden", f"pages of {origin!r:.80} may not ask here (online.hosts)")

    def _ours(self, name: str) -> bool:
        return "." not in name or _is_address(name) or self._listed(name)

    def _listed(self, name: str) -> bool:
        return any(fnmatch(name, pattern.lower()) for pattern in self.hosts)


def caller(scope: Mapping[str, Any]) -> str:
    """The address that asks; of IPv6 the network, since one machine has as many addresses as it likes."""
    place = str((scope.get("client") or ("", 0))[0])
    if ":" not in place or not _is_address(place):
        return place
    address = ip_address(place)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or IPv6Network((int(address), 64), strict=False))


def _name(place: str) -> str:
    """Of host:port, in small letters."""
    try:
        return (urlsplit(f"//{place}").hostname or "").rstrip(".").lower()
    except ValueError:
        return f".{place}"  # no host: nobody's


def _plain(place: str) -> str:
    """Host and port; the ports of http and https go without saying."""
    return place.lower().removesuffix(":80").removesuffix(":443")


def _is_address(name: str) -> bool:
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
