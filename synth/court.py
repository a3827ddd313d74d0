"""`Court`: where code that nobody trusts is run, in the sandbox, for the factory to look at.

    Court --plug--> Room (a pool: the files of one draft, and the factory's own jobs beside them)
                      --open--> Life (a process in which one environment is played)
                      --run---> a job of ours in such a process, e.g. "solve this with that solution"

There is no protocol but that of pools: jobs are calls of a tool of an environment (`synth/inside/judge.py`),
so that deadlines, limits of memory and how they end are those of every session. A room is plugged in for one
draft and retired after it; nothing of one draft is ever in a process of another.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from configs.synth import VerifyRecipe
from envpool.pool import EnvFault, EnvPool, Outcome
from envpool.session import Life, StepResult
from envpool.task import Config, PoolKey, Task
from envpool.tools import call_text
from envpool.trust import refuse_untrusted

__all__ = ["Answer", "Court", "Failure", "JobFault", "Room", "solution_name", "told"]

# Modules of ours that lie in every room, as a package of this name.
INSIDE = "_inside"
# The module of them that defines an environment, and so must lie at the top.
JUDGE = "judge.py"
# Processes of all rooms at once.
MAX_PROCESSES = 256
# What an import may take beyond two calls: processes are started for it.
START_S = 4.0
# Actions of one session that are under way at once.
MAX_UNANSWERED = 64
# CPU time that the processes of a room may use for each second that a call may take: they serve many calls.
CALLS_PER_PROCESS = 200

# Why code did not give what it should: the words that reports count.
Reason = Literal["raised", "no_json", "load", "timeout", "memory", "crashed", "grader"]
_REASONS: dict[Outcome, Reason] = {
    Outcome.ENV_ERROR: "raised",
    Outcome.GRADER_ERROR: "grader",
    Outcome.TIMEOUT: "timeout",
    Outcome.OOM: "memory",
    Outcome.CRASHED: "crashed",
    Outcome.CANCELLED: "crashed",
}

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a solution gave, in JSON."""

    value: Any


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why it gave nothing."""

    reason: Reason
    detail: str = ""


class JobFault(Exception):
    """A job did not end well, by what the code did that it was about."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    @property
    def failure(self) -> Failure:
        return Failure(reason=self.reason, detail=self.detail)


class Court:
    """One env pool for all that a factory runs. `async with` opens and closes it."""

    def __init__(self, recipe: VerifyRecipe, *, allow_unsandboxed: bool = False) -> None:
        self._recipe = recipe
        self._limits = EnvPoolSection(
            step_timeout_s=recipe.step_timeout_s,
            start_timeout_s=2 * recipe.step_timeout_s + START_S,
            max_sessions=MAX_PROCESSES,
            spares=0,
            memory_mb=max(64, recipe.memory_mb),
            allow_unsandboxed=allow_unsandboxed,
        )
        self._pool: EnvPool | None = None
        self._inside: dict[str, bytes] = {}
        self._num_rooms = 0

    async def __aenter__(self) -> Self:
        """Raises ConfigError where there is no sandbox."""
        untrusted = {"synth": PoolSection(source="./synth")}
        await asyncio.to_thread(refuse_untrusted, untrusted, self._limits)
        self._inside = await asyncio.to_thread(_inside)
        self._pool = await EnvPool.start(limits=self._limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    @property
    def sessions(self) -> EnvPool:
        """Where tasks of its rooms are played."""
        assert self._pool is not None, "the court is open"
        return self._pool

    @asynccontextmanager
    async def room(
        self,
        files: Mapping[str, str | bytes],
        *,
        timeout_s: float = 0.0,
        longest_s: float = 0.0,
    ) -> AsyncIterator["Room"]:
        """Have `files` lie in a pool of their own. Raises JobFault if they cannot be imported.

        A file `x.py` at the top is imported as it is plugged in, and its environments can be played;
        `_x.py` is not looked at. No call may take over `timeout_s` (0: the recipe's step_timeout_s) but
        jobs that are given longer: `longest_s` at most.
        """
        pool = self._pool
        assert pool is not None, "the court is open"
        self._num_rooms += 1
        timeout_s = timeout_s or self._recipe.step_timeout_s
        section = PoolSection(
            source="./draft",
            step_timeout_s=max(timeout_s, longest_s),
            cpu_s=max(1, round(timeout_s * CALLS_PER_PROCESS)),
        )
        laid = {name: _bytes(text) for name, text in files.items()} | self._inside
        try:
            plugged = await pool.plug(f"draft{self._num_rooms}", section, files=laid)
        except ConfigError as error:
            raise _as_load(error) from error
        try:
            yield Room(pool, plugged.key, plugged.envs, timeout_s)
        finally:
            await pool.retire(plugged.key)

    async def run(
        self,
        files: Mapping[str, str | bytes],
        job: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float = 0.0,
    ) -> Any:
        """What the function `job` (`module:function`) returns, in JSON, with `files` beside it.

        Name files `_x.py` for `job="_x:function"`: only then are they imported no sooner than asked.
        Raises JobFault.
        """
        async with self.room(files, timeout_s=timeout_s) as room:
            return await room.run(job, arguments)

    async def solve(
        self,
        sources: Sequence[str],
        entry: str,
        args_list: Sequence[Config],
        *,
        kind: Literal["function", "stdin"] = "function",
        timeout_s: float = 0.0,
    ) -> list[list[Answer | Failure]]:
        """What each solution answers to each set of arguments.

        `timeout_s` is for one of them; 0: the recipe's solve_timeout_s.
        """
        files = {solution_name(number): source for number, source in enumerate(sources)}
        timeout_s = timeout_s or self._recipe.solve_timeout_s
        async with self.room(files, timeout_s=timeout_s) as room:
            return [await room.solve(name, entry, args_list, kind=kind) for name in files]

    async def generate(self, source: str, count: int, level: int, seed: int) -> list[Config]:
        """`count` sets of arguments from a problem's generator, which may repeat. Raises JobFault."""
        arguments = {"source": "_generator.py", "count": count, "level": level, "seed": seed}
        timeout_s = self._recipe.solve_timeout_s
        job = f"{INSIDE}.solving:generate"
        found = await self.run({"_generator.py": source}, job, arguments, timeout_s=timeout_s)
        return told(found, list[Config])


class Room:
    """Files of one draft, served as a pool."""

    def __init__(self, pool: EnvPool, key: PoolKey, envs: Sequence[str], timeout_s: float) -> None:
        self._pool = pool
        self._key = key
        self.timeout_s = timeout_s
        """What a call may take that is given no other time."""
        self.envs = [env for env in envs if env != "judge"]
        """Ids of the environments that lie in it, ours not."""

    def task(self, env: str, config: Config, seed: int = 0) -> Task:
        """A task of it, for whoever plays in the court's sessions."""
        return Task(
            pool=self._key.name,
            pool_version=self._key.version,
            env=env,
            config=config,
            seed=seed,
        )

    async def open(self, env: str, config: Config, seed: int = 0) -> Life:
        """Play an environment in a process of its own; close it. Raises JobFault."""
        try:
            return await self._pool.open_life(self.task(env, config, seed))
        except EnvFault as fault:
            raise _as_job(fault) from fault

    async def run(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """What `module:function` returns, in a process of its own. Raises JobFault."""
        async with self.desk() as desk:
            return await desk.run(job, arguments)

    @asynccontextmanager
    async def desk(self) -> AsyncIterator["Desk"]:
        """A process for job after job; a new one after each that ended it."""
        desk = Desk(self)
        try:
            yield desk
        finally:
            await desk.close()

    async def solve(
        self,
        name: str,
        entry: str,
        args_list: Sequence[Config],
        *,
        kind: Literal["function", "stdin"] = "function",
    ) -> list[Answer | Failure]:
        """What the solution in the file `name` answers to each set of arguments."""
        answers: list[Answer | Failure] = []
        async with self.desk() as desk:
            for args in args_list:
                arguments = {
                    "source": name,
                    "entry": entry,
                    "arguments": args,
                    "is_stdin": kind == "stdin",
                }
                try:
                    found = await desk.run(f"{INSIDE}.solving:solve", arguments)
                except JobFault as fault:
                    answers.append(fault.failure)
                    continue
                is_answer = isinstance(found, dict) and found.keys() == {"answer"}
                answers.append(Answer(value=found["answer"]) if is_answer else told(found, Failure))
        return answers


class Desk:
    """A process that carries out jobs. Close it."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._life: Life | None = None

    async def run(self, job: str, arguments: Mapping[str, Any], *, timeout_s: float = 0.0) -> Any:
        """What `module:function` returns. Raises JobFault."""
        if self._life is None:
            self._life = await self._room.open("judge", {})
        action = call_text("run", {"job": job, "arguments": dict(arguments)})
        try:
            result = await step(self._life, action, timeout_s or self._room.timeout_s)
        except JobFault as fault:
            if fault.reason != "raised":
                await self.close()
            raise
        try:
            return msgspec.json.decode(result.observation)["result"]
        # Whatever else it says is not the judge's word.
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobFault("crashed", f"the job answered {result.observation[:200]!r}") from error

    async def close(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.close()


async def step(life: Life, action: str, timeout_s: float) -> StepResult:
    """Carry out an action. Raises JobFault, after which a life that was killed is of no more use."""
    try:
        async with asyncio.timeout(timeout_s):  # which kills it, when it is cancelled
            return await life.step(action)
    except EnvFault as fault:
        raise _as_job(fault) from fault
    except TimeoutError as error:
        raise JobFault("timeout", f"a call took over {timeout_s:g} s: killed") from error


async def steps(life: Life, actions: Sequence[str], timeout_s: float) -> list[StepResult]:
    """The same for actions that do not wait for each other's answers, `timeout_s` for each on average."""
    results: list[StepResult] = []
    for first in range(0, len(actions), MAX_UNANSWERED):
        chunk = actions[first : first + MAX_UNANSWERED]
        found = await asyncio.gather(
            *(step(life, action, timeout_s * len(chunk)) for action in chunk),
            return_exceptions=True,
        )
        for one in found:
            if isinstance(one, BaseException):
                raise one
            results.append(one)
    return results


def solution_name(number: int) -> str:
    """The file of a draft's solution; 0 is the original."""
    return f"_solution_{number}.py"


def _as_job(fault: EnvFault) -> JobFault:
    """A fault, by the last line of what it says: a traceback ends with what was raised."""
    lines = fault.message.strip().splitlines() or [""]
    return JobFault(_REASONS.get(fault.outcome, "crashed"), lines[-1])


def told(value: Any, kind: type[T]) -> T:
    """What a job gave, as what it should give: untrusted code ran in its process."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise JobFault("crashed", f"the job gave something else: {error}") from error


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="replace")


def _inside() -> dict[str, bytes]:
    """The modules of ours that lie in every room, by where they lie."""
    folder = Path(__file__).parent / "inside"
    files = {f"{INSIDE}/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}
    return files | {JUDGE: (folder / JUDGE).read_bytes()}


def _as_load(error: ConfigError) -> JobFault:
    """Why a source cannot be imported, without where the pool lay."""
    head, separator, rest = str(error).partition(": ")
    text = rest if separator and head.startswith("pools.") else str(error)
    if "took over" in text:
        return JobFault("timeout", text)
    return JobFault("crashed" if "its process died" in text else "load", text)
