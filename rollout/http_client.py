"""Asks a server over HTTP: one try, or tries with growing pauses while what fails may pass.

Knows nothing of what is asked. Errors name the server's address, what it said and a cure.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from configs.schema import HttpSection
from rollout.engine import EngineError

logger = logging.getLogger(__name__)

# Seconds before the first further try; doubled for each one after it, up to the longest.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_CONNECT_S = 10.0
_KEEP_S = 3.0
# Of what a server says, this much is shown.
_MAX_SAID = 400

_MAY_PASS = frozenset({408, 429, 500, 502, 503, 504})
_RUNS = "see that the server runs, and that engine.http.urls names it"
_KEY = "put the server's key into the environment variable that engine.http.api_key_env names"
_CURES = {
    0: _RUNS,
    401: _KEY,
    403: _KEY,
    404: "see that engine.http.urls names a vLLM server, without a path",
    429: "start the server with more room, or lower engine.max_running",
}


class RequestFailed(Exception):
    """A try without an answer to use. `status` is 0 where nothing answered."""

    def __init__(self, url: str, status: int, said: str, wait_s: float = 0.0) -> None:
        super().__init__(url, status, said, wait_s)
        self.url, self.status, self.said = url, status, said
        self.wait_s = wait_s
        """The pause that the server asked for."""

    @property
    def may_pass(self) -> bool:
        """Whether another try may fare better."""
        return not self.status or self.status in _MAY_PASS

    def __str__(self) -> str:
        what = f"status {self.status}, {self.said}" if self.status else self.said
        return f"{self.url}: {what}; {_CURES.get(self.status, 'see the log of the server')}"


class Patience:
    """The pauses between tries of one request, which end `retry_s` after its first failure."""

    def __init__(self, retry_s: float, *, says_so: bool = False) -> None:
        """`says_so`: the first failure is logged."""
        self._retry_s = retry_s
        self._says_so = says_so
        self._pause_s = _FIRST_PAUSE_S
        self._until: float | None = None

    async def wait(self, failure: RequestFailed) -> None:
        """Wait for the next try; raises EngineError where none is left, or none would help."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._retry_s
            if self._says_so and failure.may_pass:
                logger.warning("tried again for %g s: %s", self._retry_s, failure)
        left_s = self._until - now
        if not failure.may_pass:
            raise EngineError(str(failure)) from failure
        if left_s <= 0:
            raise EngineError(
                f"{failure}, or raise engine.http.retry_s={self._retry_s:g}, for which it was tried"
            ) from failure
        # Many requests fail at the same moment, and should not come back at the same one.
        pause_s = max(failure.wait_s, self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        await asyncio.sleep(min(pause_s, left_s))


class Client:
    """Connections to one server. Made inside an event loop; `close` ends them."""

    def __init__(self, url: str, section: HttpSection) -> None:
        """Raises EngineError when there is no key where the section says that one is."""
        self.url = url.rstrip("/")
        self._retry_s = section.retry_s
        headers = {"Content-Type": "application/json"}
        if section.api_key_env:
            headers["Authorization"] = f"Bearer {_key(section.api_key_env)}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            # How many requests run at once is the caller's business, and how long they take.
            # A server's end lets go of an idle connection after 5 s, and a request may just have begun.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(
        self, path: str, body: Any = None, *, query: Mapping[str, str] | None = None
    ) -> bytes:
        """What the server answers to one POST of `body`, or to a GET; raises RequestFailed.

        Cancelling closes the connection, at which a server ends the request.
        """
        method = "GET" if body is None else "POST"
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                method, self.url + path, data=data, params=query
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailed(self.url, 0, f"{error or type(error).__name__}") from error
        if response.status == 200:
            return answer
        said = f"{path} answered {_said(answer)}"
        wait_s = response.headers.get("Retry-After", "")
        raise RequestFailed(
            self.url, response.status, said, float(wait_s) if wait_s.isdecimal() else 0.0
        )

    async def insist(
        self,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        says_so: bool = False,
        retry_s: float | None = None,
    ) -> bytes:
        """As `ask`, tried again while that may help. Raises EngineError."""
        patience = Patience(self._retry_s if retry_s is None else retry_s, says_so=says_so)
        while True:
            try:
                return await self.ask(path, body, query=query)
            except RequestFailed as failure:
                await patience.wait(failure)


def _key(name: str) -> str:
    """The key in an environment variable; raises EngineError."""
    if key := os.environ.get(name, ""):
        return key
    raise EngineError(
        f"engine.http.api_key_env={name!r}: there is no such environment variable, or it is empty: set "
        "it to the server's key before the run starts, on every machine that has an actor"
    )


def _said(answer: bytes) -> str:
    """What a server said of its failure, as far as it can be shown."""
    try:
        found = msgspec.json.decode(answer)
        said = found["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.decode(errors="replace")
    return repr(str(said)[:_MAX_SAID])
