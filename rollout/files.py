"""Everything a run writes line by line: `rollouts/part_*.jsonl`, `events.jsonl`, `metrics.jsonl`.

One thread owns the files, so that the event loop never blocks on a disk. Lines appear in the order
they were given. A failing write is raised by the next call, never swallowed.
"""

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from envpool.task import Config
from rollout.ledger import GroupState
from rollout.types import FORMAT, Rollout, Row, StopReason, Turn

# Rollouts in a part before the next one is begun: a few megabytes, readable by eye.
PART_ROWS = 5000

_encode = msgspec.json.Encoder().encode


class RolloutRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `rollouts/part_*.jsonl`: one rollout, and what became of its group."""

    format: int = FORMAT
    group_id: str
    member: int
    attempt: int
    group_size: int
    state: GroupState | None
    """End state of its group; None for a rollout of an evaluation."""
    step: int | None
    """The optimizer step that trained on it."""
    lag: int | None
    """Of its oldest trained token at that step."""
    task_id: str
    pool: str
    pool_version: str
    env: str
    config: Config
    seed: int
    prompt: str = ""
    """The task in words."""
    stop: StopReason
    reward: float | None
    versions: list[int]
    """Versions that sampled its tokens, in order of appearance."""
    num_tokens: int
    num_sampled_tokens: int
    turns: list[Turn]
    actor: str
    wall_s: float
    error: str
    failed_action: str = ""
    """The action at which the environment failed."""
    rows: list[Row] = []
    """Its tokens, where `logging.tokens` keeps them."""

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        *,
        config: Config,
        group_size: int,
        state: GroupState | None = None,
        step: int | None = None,
        lag: int | None = None,
    ) -> "RolloutRow":
        """The line for `rollout`, whose group ended in `state`."""
        spans = [span for row in rollout.rows for span in row.spans]
        return cls(
            group_id=rollout.group_id,
            member=rollout.member,
            attempt=rollout.attempt,
            group_size=group_size,
            state=state,
            step=step,
            lag=lag,
            task_id=rollout.task_id,
            pool=rollout.pool,
            pool_version=rollout.pool_version,
            env=rollout.env,
            config=config,
            seed=rollout.seed,
            prompt=rollout.prompt,
            stop=rollout.stop,
            reward=rollout.reward,
            versions=list(dict.fromkeys(span.version for span in spans)),
            num_tokens=sum(len(row.token_ids) for row in rollout.rows),
            num_sampled_tokens=rollout.num_sampled_tokens,
            turns=rollout.turns,
            actor=rollout.actor,
            wall_s=rollout.wall_s,
            error=rollout.error,
            failed_action=rollout.failed_action,
        )


class TrainedStep(msgspec.Struct, frozen=True, kw_only=True, tag="trained", tag_field="kind"):
    """A line of `events.jsonl`: the groups an optimizer step consumed."""

    step: int
    version: int
    groups: list[str]
    at_s: float


class BusySpan(msgspec.Struct, frozen=True, kw_only=True, tag="busy", tag_field="kind"):
    """A line of `events.jsonl`: `who` computed from `start_s` to `end_s` (monotonic clock)."""

    who: str
    start_s: float
    end_s: float


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="kind"):
    """The first line of `events.jsonl`."""

    format: int = FORMAT


class Mark(msgspec.Struct, frozen=True, kw_only=True, tag="mark", tag_field="kind"):
    """A line of `events.jsonl`: a named moment of the run."""

    name: str
    at_s: float


class Flushed:
    """A request to have everything on disk that was given before it."""

    def __init__(self, writer: threading.Thread) -> None:
        self._writer = writer
        self._done = threading.Event()
        self._sizes: dict[str, int] = {}

    def wait(self) -> dict[str, int]:
        """Block until it is done; the bytes of each line file then, by path in the run directory.

        Raises OSError when the writer ended without doing it.
        """
        while not self._done.wait(1.0):
            if not self._writer.is_alive() and not self._done.is_set():
                raise OSError("the files of the run could not be written")
        return self._sizes

    def set(self, sizes: dict[str, int]) -> None:
        """It is done."""
        self._sizes = sizes
        self._done.set()


def line_files(run_dir: Path) -> dict[str, int]:
    """Bytes of each line file of a run, by its path in the run directory."""
    paths = [*run_dir.glob("*.jsonl"), *(run_dir / "rollouts").glob("*.jsonl")]
    return {path.relative_to(run_dir).as_posix(): path.stat().st_size for path in sorted(paths)}


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that may still be written, or whose writer was killed; none if it is missing.

    A last line without its newline is left out: it is half of what it should say.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


class RunFiles:
    """The line files of one run directory, written by a thread of their own.

    Rollouts are written without their tokens unless `keeps_tokens`.
    """

    def __init__(self, run_dir: Path, *, keeps_tokens: bool = False) -> None:
        self._run_dir = run_dir
        self._keeps_tokens = keeps_tokens
        (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
        self._lines: queue.SimpleQueue[tuple[str, bytes] | Flushed | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        # A resumed run begins a part of its own.
        self._rows = len(list((run_dir / "rollouts").glob("part_*.jsonl"))) * PART_ROWS
        self._thread = threading.Thread(target=self._write, name="run-files", daemon=True)
        self._thread.start()
        self.event(Header())

    def rollout(self, row: RolloutRow, tokens: Sequence[Row] = ()) -> None:
        """Append to the rollout log, with the rollout's tokens if these are kept."""
        part, self._rows = self._rows // PART_ROWS, self._rows + 1
        self._put(f"rollouts/part_{part:04d}.jsonl", self._with(row, tokens))

    def evaluation(self, label: str, row: RolloutRow, tokens: Sequence[Row] = ()) -> None:
        """Append to the log of one evaluation."""
        self._put(f"rollouts/eval_{label}.jsonl", self._with(row, tokens))

    def event(self, event: msgspec.Struct) -> None:
        """Append to the event log."""
        self._put("events.jsonl", event)

    def metrics(self, values: dict[str, float | int]) -> None:
        """Append to the metrics."""
        self._put("metrics.jsonl", values)

    def flush(self) -> Flushed:
        """Ask for everything so far to be on disk; the returned object says when it is."""
        self._check()
        flushed = Flushed(self._thread)
        self._lines.put(flushed)
        return flushed

    def close(self) -> None:
        """Write what is left; blocks until it is on disk. Raises OSError if a write failed."""
        self._lines.put(None)
        self._thread.join()
        self._check()

    def _with(self, row: RolloutRow, tokens: Sequence[Row]) -> RolloutRow:
        return msgspec.structs.replace(row, rows=list(tokens)) if self._keeps_tokens else row

    def _put(self, name: str, value: object) -> None:
        self._check()
        self._lines.put((name, _encode(value) + b"\n"))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        files: dict[str, IO[bytes]] = {}
        try:
            while (item := self._lines.get()) is not None:
                if isinstance(item, Flushed):
                    # A checkpoint counts on these bytes, also after a power cut.
                    for file in files.values():
                        file.flush()
                        os.fsync(file.fileno())
                    item.set(line_files(self._run_dir))
                    continue
                name, line = item
                if name not in files:
                    # Kept open for the run: a part is reopened by nobody.
                    files[name] = (self._run_dir / name).open("ab")
                files[name].write(line)
                if self._lines.empty():  # a reader sees what there is; a crash loses little
                    for file in files.values():
                        file.flush()
        except OSError as error:
            self._error = error
        finally:
            for file in files.values():
                try:
                    file.close()
                except OSError as error:  # what it still had to write is lost
                    self._error = self._error or error
