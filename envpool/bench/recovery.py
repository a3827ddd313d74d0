"""What becomes of sessions when the processes of many are killed at once, in the middle of an episode."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from envpool.bench.ours import Mode, make_task, open_all, start
from envpool.bench.system import runner
from envpool.bench.variants import Tally
from envpool.env import call_text

# Steps of an episode: before the kill, the one that meets it, and after.
STEPS_BEFORE, STEPS_AFTER = 4, 4


@dataclass(slots=True, kw_only=True, frozen=True)
class Recovery:
    """What became of sessions whose processes were killed."""

    sessions: int
    killed: int
    last_answer_s: float
    """From the first kill until the last of the killed has answered its next step."""
    wrong_transcripts: int
    """Of all sessions, whatever differs from the transcript of one that nobody disturbed."""


def recovery(mode: Mode, num_sessions: int, num_killed: int) -> Recovery:
    """Kill the processes of some of the sessions at once, in the middle of their episodes."""
    with runner() as loop:
        return loop.run(_recover(mode, num_sessions, num_killed))


class Script(NamedTuple):
    """An episode as it is when nothing disturbs it."""

    actions: list[str]
    observations: list[str]


async def _recover(mode: Mode, num_sessions: int, num_killed: int) -> Recovery:
    scripts = [_script(seed) for seed in range(num_sessions)]
    async with await start(mode, num_sessions) as pool:
        tasks = [make_task(pool, "tally", {}, seed) for seed in range(num_sessions)]
        opened = await open_all(pool, tasks)
        found: list[list[str]] = [[] for _ in opened]

        async def play(index: int, actions: Sequence[str]) -> None:
            for action in actions:
                found[index].append((await opened[index].step(action)).observation)

        async def play_each(first: int, last: int | None, indices: Sequence[int]) -> float:
            async with asyncio.TaskGroup() as group:
                for index in indices:
                    actions = scripts[index].actions[first:last]
                    group.create_task(play(index, actions), name=f"session {index}")
            return time.perf_counter()

        everyone = range(num_sessions)
        await play_each(0, STEPS_BEFORE, everyone)
        victims = set(Random(0).sample(pool.session_pids(), num_killed))
        killed = [index for index, session in enumerate(opened) if session.pid in victims]
        others = [index for index in everyone if index not in set(killed)]
        began = time.perf_counter()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.TaskGroup() as group:
            last = group.create_task(
                play_each(STEPS_BEFORE, STEPS_BEFORE + 1, killed), name="killed"
            )
            group.create_task(play_each(STEPS_BEFORE, STEPS_BEFORE + 1, others), name="others")
        await play_each(STEPS_BEFORE + 1, None, everyone)
    wrong = sum(seen != one.observations for seen, one in zip(found, scripts, strict=True))
    return Recovery(
        sessions=num_sessions,
        killed=len(killed),
        last_answer_s=last.result() - began,
        wrong_transcripts=wrong,
    )


def _script(seed: int) -> Script:
    """Play an episode to its end in this process."""
    env, rng = Tally(), Random(seed)
    env.reset(seed=seed, options={})
    numbers = [rng.randrange(100) for _ in range(STEPS_BEFORE + 1 + STEPS_AFTER)]
    actions = [call_text("add", {"number": number}) for number in numbers]
    return Script(actions, [env.step(action)[0] for action in actions])
