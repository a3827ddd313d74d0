"""A request, the key that names it, and the replies kept on disk under these keys.

A resumed run asks nothing twice, and asks the same: a request is all that decides a reply, seed included.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

from synth.llm.replies import Reply


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation, as the chat API takes it."""

    role: Literal["user", "assistant"]
    content: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a model."""

    model: str
    messages: tuple[Message, ...]
    seed: int
    temperature: float
    max_tokens: int
    versions: str
    """Of the prompts; part of the key, and not sent."""

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        body = msgspec.to_builtins(self)
        del body["versions"]
        return body

    @property
    def key(self) -> str:
        """SHA-256 (hex) of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class ReplyCache:
    """Replies in a directory, a file each. Blocks: call it in a thread.

    A file is there whole or not at all, so that many processes may share a directory. One that cannot be
    read, as after a full disk, is taken for none and written anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the directory. Raises OSError where that is not possible."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Reply | None:
        try:
            return msgspec.json.decode(self._path(key).read_bytes(), type=Reply)
        except (FileNotFoundError, ValueError):
            return None

    def put(self, key: str, reply: Reply) -> None:
        write_whole(self._path(key), msgspec.json.encode(reply))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is never seen half written; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
