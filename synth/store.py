"""`Store`: what the factory has finished, a file each, so that one that was stopped goes on.

A record's key says all that decides it: what went in, the recipe, and the factory's own code. Another
recipe or another version of the code finds nothing and does the work again.
"""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from synth import atomic

T = TypeVar("T")

_ROOT = Path(__file__).parents[1]


class Store:
    """Records under one directory. Blocks."""

    def __init__(self, folder: Path, *, salt: str = "") -> None:
        """`salt` goes into every key; empty: the text of the factory's code."""
        self.folder = folder
        self._salt = salt or code_digest()

    def key(self, *parts: Any) -> str:
        """What a record is found by."""
        text = msgspec.json.encode([self._salt, *parts], order="sorted")
        return hashlib.sha256(text).hexdigest()[:24]

    def get(self, kind: str, key: str, record: type[T]) -> T | None:
        """A finished record, or None where there is none that can be read."""
        try:
            return msgspec.json.decode(
                (self.folder / kind / f"{key}.json").read_bytes(), type=record
            )
        except (OSError, msgspec.MsgspecError):
            return None

    def has(self, kind: str) -> bool:
        """Whether there are records of a kind, under whatever keys."""
        return next((self.folder / kind).glob("*.json"), None) is not None

    def put(self, kind: str, key: str, record: Any) -> None:
        """Keep a record: all of it or nothing. Raises atomic.WriteError."""
        atomic.write(self.folder / kind / f"{key}.json", msgspec.json.encode(record))


def code_digest(root: Path = _ROOT) -> str:
    """SHA-256 (hex) of the code below `root` that makes and judges environments."""
    digest = hashlib.sha256()
    package = root / "synth"
    prompts = (package / "llm" / "prompts").glob("*.md")
    files = [*package.rglob("*.py"), *prompts, *(root / "envpool").glob("*.py")]
    for path in sorted(files):
        # Problems are keyed by what they say.
        if package / "problems" not in path.parents:
            digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()
