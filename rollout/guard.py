"""Who may use the control server.

On a loopback address everybody on this machine may, but no page that a browser here shows: neither one
whose host name was made to point here (DNS rebinding) nor one that sends requests elsewhere. On any
other address, or where a token was set, a request must carry the token.
"""

import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from aiohttp import web

from configs.schema import ControlSection

# What a browser or curl on this machine calls it.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Random bytes of a token that nobody chose.
TOKEN_BYTES = 32


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through, or answers them with 401 or 403."""

    def __init__(self, section: ControlSection) -> None:
        self._is_local = is_loopback(section.host)
        self._names = {*LOCAL_NAMES, section.host}
        self.token = section.token
        """What a request must carry; empty where nothing is needed."""
        if not self._is_local and not self.token:
            self.token = secrets.token_urlsafe(TOKEN_BYTES)

    def check(self, request: web.Request) -> None:
        """Raises an HTTPException for a request that may not come in."""
        if self.token:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # Whatever bytes a header has: they are compared, and nothing else.
            sent = given.strip().encode(errors="surrogateescape")
            is_known = hmac.compare_digest(sent, self.token.encode())
            if scheme.lower() != "bearer" or not is_known:
                raise web.HTTPUnauthorized(
                    reason="a token is needed: Authorization: Bearer <token>, which the run wrote to "
                    "control.json in its directory",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif _hostname(request.host) not in self._names:
            raise web.HTTPForbidden(
                reason=f"Host {request.host!r} is not this machine's: use 127.0.0.1 or localhost"
            )
        origin = request.headers.get("Origin")
        if origin is not None and _place_of(origin) != request.host:
            raise web.HTTPForbidden(reason=f"requests of pages of {origin!r} are not answered")


def _place_of(origin: str) -> str:
    """Host and port of an Origin header; nothing of one that is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
