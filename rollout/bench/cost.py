"""`python launch.py bench cost`: what a rollout costs beside the policy, in CPU time, and what starting costs.

A run of the recipe is watched from outside through /proc: CPU seconds of each of its processes, once the
pipeline is full and again at its end, over the rollouts that ended between. Threads that Ray brings are
told from Python's by their names. Serialization is measured by packing and unpacking the messages of
the same rollouts again.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from configs.load import ConfigError
from rollout import audit
from rollout.bench import runs
from rollout.bench.runs import WARMUP_STEPS
from rollout.files import RolloutRow, whole_lines
from rollout.processes import read_pids
from rollout.summary import Summary
from rollout.types import (
    ActorEvent,
    Rollout,
    RolloutDone,
    Row,
    Span,
    TrainBatch,
    TrainGroup,
    TurnDone,
    decode_batch,
    decode_events,
    encode,
)

COORDINATOR, RAY, ENVIRONMENTS = "coordinator", "Ray", "environments"
SERIALIZATION = "packing and unpacking messages"


class Watch:
    """CPU seconds of a run by part, after the warm-up and the last time it was seen."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._steps = 0
        self._names: dict[int, str] = {}
        self.first: tuple[int, dict[str, float]] | None = None
        self.last: tuple[int, dict[str, float]] | None = None

    def __call__(self, pid: int, line: str) -> None:
        """Look at the run `pid`, which printed `line`."""
        if not line.startswith("step "):
            return
        self._steps += 1
        if self._steps < WARMUP_STEPS:
            return
        if not self._names:
            self._names = {one.pid: one.name for one in read_pids(self._run_dir)}
        seen = self._count_rollouts(), self._cpu_s(pid)
        self.first, self.last = self.first or seen, seen

    def per_rollout_s(self) -> dict[str, float]:
        """CPU seconds a rollout, by part."""
        if self.first is None or self.last is None or self.first[0] == self.last[0]:
            raise runs.RunError("the run was too short to be watched: raise --steps")
        (rows, before), (more_rows, after) = self.first, self.last
        return {
            part: max(0.0, after[part] - before.get(part, 0.0)) / (more_rows - rows)
            for part in after
        }

    def _count_rollouts(self) -> int:
        parts = (self._run_dir / "rollouts").glob("part_*.jsonl")
        return sum(1 for part in parts for _ in whole_lines(part))

    def _cpu_s(self, pid: int) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                rays_s = _ray_threads_s(process.pid)
                name = self._name(process)
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue
            total_s = times.user + times.system
            if name == ENVIRONMENTS:  # those that ended count for the zygote that forked them
                total_s += times.children_user + times.children_system
            elif name != RAY:
                found[RAY] += rays_s
                total_s -= rays_s
            found[name] += total_s
        return dict(found)

    def _name(self, process: psutil.Process) -> str:
        """The part of the run that a process belongs to."""
        for one in [process, *process.parents()]:
            name = self._names.get(one.pid, "")
            if "/zygote-" in name:
                return ENVIRONMENTS
        name = self._names.get(process.pid, "")
        if name == "launch":
            return COORDINATOR
        return RAY if not name or name.startswith("ray:") else name


def main(arguments: list[str]) -> int:
    """Print tables; with --json also one JSON object on the last line."""
    parser = runs.make_parser("cost", __doc__)
    runs.add_steps(parser)
    options = parser.parse_args(arguments)
    runs.check_steps(options.steps)
    if not Path("/proc/self/task").exists():
        raise ConfigError("bench cost reads /proc, which this system does not have")
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(options.keep or Path(scratch, "run")).absolute()
        watch = Watch(run_dir)
        runs.play(run_dir, [*options.settings, *runs.BARE, f"learner.steps={options.steps}"], watch)
        per_rollout_s = watch.per_rollout_s()
        serialization_s = serialization_per_rollout_s(list(audit.rows(run_dir)))
        summary = msgspec.json.decode((run_dir / "summary.json").read_bytes(), type=Summary)
    _print(per_rollout_s, serialization_s, summary.startup_s)
    if options.json:
        result = {
            "benchmark": "cost",
            "cpu_ms_per_rollout": {part: 1e3 * s for part, s in per_rollout_s.items()},
            "serialization_cpu_ms_per_rollout": 1e3 * serialization_s,
            "startup_s": summary.startup_s,
        }
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def serialization_per_rollout_s(rows: Sequence[RolloutRow]) -> float:
    """CPU seconds to pack and unpack, at both ends, what crossed processes for one of these rollouts."""
    events = [_events(row) for row in rows]
    trained: dict[int, list[Rollout]] = defaultdict(list)
    for row in rows:
        if row.step is not None:
            trained[row.step].append(_rollout(row))
    batches = [_batch(step, rollouts) for step, rollouts in trained.items()]
    begun = time.thread_time()
    for one in events:
        decode_events(encode(one))
    for batch in batches:
        decode_batch(encode(batch))
    return (time.thread_time() - begun) / len(rows)


def _events(row: RolloutRow) -> list[ActorEvent]:
    """What an actor sent: every turn as it was complete, and the rollout. Only sizes are as they were."""
    turns = [
        TurnDone(
            group_id=row.group_id,
            member=row.member,
            attempt=row.attempt,
            turn=turn,
            reply=_tokens(turn.num_reply_tokens, turn.num_reply_tokens),
        )
        for turn in row.turns
    ]
    return [*turns, RolloutDone(rollout=_rollout(row))]


def _batch(step: int, rollouts: list[Rollout]) -> TrainBatch:
    group = TrainGroup(group_id="all", pool=rollouts[0].pool, rollouts=rollouts)
    return TrainBatch(step=step, version=0, publish_version=None, groups=[group], max_lag=0)


def _rollout(row: RolloutRow) -> Rollout:
    return Rollout(
        group_id=row.group_id,
        member=row.member,
        attempt=row.attempt,
        task_id=row.task_id,
        pool=row.pool,
        pool_version=row.pool_version,
        env=row.env,
        seed=row.seed,
        stop=row.stop,
        reward=row.reward,
        rows=[_tokens(row.num_tokens, row.num_sampled_tokens)],
        turns=row.turns,
        prompt=row.prompt,
        error=row.error,
    )


def _tokens(length: int, sampled: int) -> Row:
    """A row of `length` tokens of which the last `sampled` were sampled."""
    zeros = np.zeros(length)
    spans = [Span(version=0, start=length - sampled, end=length)] if sampled else []
    return Row.pack(zeros, zeros, np.arange(length) >= length - sampled, spans)


def _ray_threads_s(pid: int) -> float:
    """CPU seconds of the threads that Ray's library runs in a process of ours.

    Python's threads carry the name of their process, which Ray sets to `ray::...`; its own have others.
    """
    tasks = Path(f"/proc/{pid}/task")
    main_name = (tasks / str(pid) / "comm").read_text().strip()
    found = 0.0
    for thread in psutil.Process(pid).threads():
        try:
            name = (tasks / str(thread.id) / "comm").read_text().strip()
        except FileNotFoundError:
            continue  # it ended meanwhile
        if name != main_name and not name.startswith("ray::"):
            found += thread.user_time + thread.system_time
    return found


def _print(costs: dict[str, float], serialization_s: float, startup_s: dict[str, float]) -> None:
    total_s = sum(costs.values())
    shown = Table(box=None, pad_edge=False)
    shown.add_column("CPU time of a rollout")
    shown.add_column("ms", justify="right")
    shown.add_column("share", justify="right")
    for part, seconds in sorted(costs.items(), key=lambda item: -item[1]):
        shown.add_row(part, f"{1e3 * seconds:.2f}", f"{seconds / total_s:.0%}")
    share = f"{serialization_s / total_s:.0%}"
    shown.add_row(f"of these {SERIALIZATION}", f"{1e3 * serialization_s:.2f}", share)
    shown.add_row("", "", "")
    shown.add_row("start-up by part", "s", "")
    for part, seconds in startup_s.items():
        shown.add_row(part, f"{seconds:.2f}", "")
    Console(file=sys.stdout, width=100).print(shown)
