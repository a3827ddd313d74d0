"""A running run as another process reaches it: where it listens, and what it answers."""

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from configs.load import ConfigError
from rollout.control import FILE, ControlFile

# A pool is plugged and drawn from before it answers, a checkpoint waits for a step.
TIMEOUT_S = 600.0


class RefusedError(Exception):
    """The run would not; the words are its own."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Remote:
    """The control server of one run."""

    url: str
    token: str = ""

    @classmethod
    def find(cls, run: str, token: str = "") -> "Remote":
        """Of a run's directory, or its URL. Raises ConfigError where there is none."""
        if run.startswith(("http://", "https://")):
            return cls(url=run.rstrip("/"), token=token)
        path = Path(run).expanduser() / FILE
        if not path.parent.is_dir():
            raise ConfigError(f"--run {run}: there is no such directory; launch.py show lists runs")
        try:
            control = msgspec.json.decode(path.read_bytes(), type=ControlFile)
        except FileNotFoundError:
            raise ConfigError(f"--run {run}: no {FILE} there, so that nothing runs in it") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"--run {run}: {path} cannot be read: {error}") from error
        return cls(url=control.url, token=token or control.token)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer. Raises RefusedError, and ConfigError where nobody answers."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        # A proxy of the environment is not for this machine's own addresses.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as error:
            raise RefusedError(_words(error)) from error
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"no run answers at {self.url} ({reason}): it ended, or it is not on this machine"
            ) from error


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return str(msgspec.json.decode(error.read())["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
