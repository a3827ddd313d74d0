"""Lines of data files, and why a line is no problem."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
from pyarrow import parquet

from synth.problem import ProblemError

# Rows of a parquet file in memory at once.
BATCH_ROWS = 256

Fields = dict[str, Any]


class Unread(ProblemError):
    """A file or row that gives no problem: a reason that many share, and what exactly with the cure."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason
        self.text = text

    def __str__(self) -> str:
        return self.text


def rows(path: Path) -> Iterator[tuple[str, Fields | Unread]]:
    """Each row's place (`file:line`, in parquet files the row's number from 1) and its fields.

    A row that cannot be read is given as the reason; the others go on.
    """
    return _parquet(path) if path.suffix == ".parquet" else _jsonl(path)


def slug(text: str) -> str:
    """`text` in lower-case words joined by `_`."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _jsonl(path: Path) -> Iterator[tuple[str, Fields | Unread]]:
    decode = msgspec.json.Decoder(Fields).decode
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    yield place, decode(line)
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    text = f"{place}: no JSON object on one line: {error}: correct or remove it"
                    yield place, Unread("bad JSON", text)
    except OSError as error:
        yield f"{path}:1", Unread("unreadable", f"{path}: {error}: make it readable")


def _parquet(path: Path) -> Iterator[tuple[str, Fields | Unread]]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        text = f"{path}:{number + 1}: not readable as parquet: {said}: write the file anew"
        yield f"{path}:{number + 1}", Unread("bad parquet", text)
