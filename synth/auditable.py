"""`Auditable`: an environment as an audit takes it, of either kind, with its tasks. Nothing of it is imported."""

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from configs.load import ConfigError
from envpool.task import Config
from synth.records import Move

Kind = Literal["millrace", "codegym"]


class AuditTask(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration."""

    config: Config | None
    """In JSON, as solutions get it; None where it is none."""
    literal: str = ""
    """Of CodeGym's kind: the dict as its environment reads it; empty for what the class starts with."""
    prompt: str = ""
    """What an agent is told beside the statement."""
    trace: tuple[Move, ...] = ()


class Auditable(msgspec.Struct, frozen=True, kw_only=True):
    """One environment."""

    env: str
    kind: Kind
    name: str
    """Its id, or of CodeGym's kind its class."""
    source: str
    files: Mapping[str, bytes] = {}
    """All of its pool, where it may need what lies beside it."""
    module: str = ""
    """Its module among `files`."""
    tasks: tuple[AuditTask, ...] = ()
    """Empty: those that it draws or starts with."""
    words: frozenset[str] = frozenset()
    """Ids that its problem may have."""


def text_of(path: Path) -> str:
    """Raises ConfigError for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def tree_of(source: str) -> ast.Module:
    """Of a text that cannot be parsed an empty one."""
    try:
        with warnings.catch_warnings():
            # Of the parser, about texts that are not ours.
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])
