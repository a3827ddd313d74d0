"""Batch files: requests to send elsewhere as JSONL, and the replies that came back.

A line's `custom_id` has a part of its request's key, so that a reply to another prompt or setting never
passes for one to this.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from configs.load import ConfigError
from synth.chat import read_completion
from synth.llm.cache import ReplyCache, Request, write_whole
from synth.llm.endpoint import reply_of

_URL = "/v1/chat/completions"
_KEY_DIGITS = 16


class BatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply file had. Requests that are missing or failed are asked of the endpoint."""

    read: int
    """Replies now in the cache."""
    missing: tuple[str, ...]
    """Ids of requests without a line."""
    failed: dict[str, str]
    """Why a line is of no use, by its id; by `line N` where it has none."""
    unknown: tuple[str, ...]
    """Ids of lines that answer nothing asked now."""


class _Response(msgspec.Struct, frozen=True, kw_only=True):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    custom_id: str
    response: _Response | None = None
    error: Any = None


def custom_id(name: str, request: Request) -> str:
    """Id of a request in a batch; `name` says what it is for."""
    return f"{name}.{request.key[:_KEY_DIGITS]}"


def write(path: Path, requests: Mapping[str, Request]) -> None:
    """Write a batch request file: requests by custom id. Blocks."""
    lines = (
        {"custom_id": name, "method": "POST", "url": _URL, "body": request.body}
        for name, request in requests.items()
    )
    write_whole(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read(path: Path, requests: Mapping[str, Request], cache: ReplyCache) -> BatchReport:
    """Put the replies of a file into the cache. Blocks. Raises ConfigError for an unreadable file."""
    failed: dict[str, str] = {}
    unknown: list[str] = []
    good: set[str] = set()
    for name, line in _lines(path, failed):
        if name not in requests:
            unknown.append(name)
            continue
        try:
            reply = reply_of(read_completion(_body(line)))
        except ValueError as error:
            failed[name] = str(error)
            continue
        cache.put(requests[name].key, reply)
        good.add(name)
    failed = {name: why for name, why in failed.items() if name not in good}
    missing = [name for name in requests if name not in good and name not in failed]
    return BatchReport(
        read=len(good), missing=tuple(missing), failed=failed, unknown=tuple(unknown)
    )


def _lines(path: Path, failed: dict[str, str]) -> Iterator[tuple[str, _Line]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"llm.replies={str(path)!r}: {error.strerror}: name the file that the batch gave"
        ) from error
    for number, text in _numbered(data.splitlines()):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (ValueError, RecursionError) as error:
            failed[f"line {number}"] = str(error)
            continue
        yield line.custom_id, line


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _body(line: _Line) -> bytes:
    if line.error or line.response is None:
        raise ValueError(f"it failed: {msgspec.json.encode(line.error).decode()[:200]}")
    if line.response.status_code != 200:
        said = bytes(line.response.body).decode(errors="replace")[:200]
        raise ValueError(f"it was answered {line.response.status_code}: {said}")
    return bytes(line.response.body)
