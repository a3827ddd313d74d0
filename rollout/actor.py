"""The process that owns one engine and plays episodes against it.

    coordinator -- grants --> Actor.play -> a task per member -> Episode -> engine, environments
    coordinator <-- events -- Actor.events <- turns, rollouts, busy intervals, engine statistics

A plain class: Ray wraps it in `rollout/cluster.py`, tests use it as it is.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from configs.schema import PoolSection
from envpool.pool import Plugged
from envpool.task import Config, PoolKey
from rollout.engine import Engine, EngineError, UpdateMode, UpdateReport
from rollout.episode import Episode, Limits, Sessions
from rollout.types import ActorEvent, Busy, Grant, RolloutDone, Row, StopReason, Turn, TurnDone
from rollout.weights import Endpoint, Manifest

if TYPE_CHECKING:
    from rollout.tokens import ChatTokens

# Events wait this long for company: a call to another process costs more than they do. An ended
# rollout makes room and may complete a group; a turn only has to be in the journal.
ROLLOUT_WAIT_S = 0.01
TURN_WAIT_S = 0.2


class Serves(Sessions, Protocol):
    """Where sessions come from, of pools that come and go."""

    async def plug(
        self, name: str, section: PoolSection, *, files: Mapping[str, bytes] | None = None
    ) -> Plugged: ...
    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]: ...
    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None: ...
    async def retire(self, key: PoolKey) -> None: ...


@runtime_checkable
class Joins(Protocol):
    """An engine that weights can be sent to."""

    async def join(self, endpoint: Endpoint) -> None: ...


class Actor:
    """Plays granted members concurrently; what happens is read with `events`."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        sessions: Serves,
        tokens: "ChatTokens",
        limits: Limits,
        update_mode: UpdateMode,
    ) -> None:
        self.name = name
        self._engine = engine
        self._sessions = sessions
        self._tokens = tokens
        self._limits = limits
        self._update_mode = update_mode
        self._outbox: list[ActorEvent] = []
        self._has_news = asyncio.Event()
        self._news_due_s = math.inf
        self._is_closing = asyncio.Event()
        self._playing: dict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._begun: set[tuple[str, int, int]] = set()
        self._members: asyncio.TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        *,
        name: str,
        engine: Engine,
        sessions: Serves,
        tokens: "ChatTokens",
        limits: Limits,
        update_mode: UpdateMode = UpdateMode.RECOMPUTE,
    ) -> "Actor":
        """A running actor; `close` ends it."""
        actor = cls(
            name=name,
            engine=engine,
            sessions=sessions,
            tokens=tokens,
            limits=limits,
            update_mode=update_mode,
        )
        ready = asyncio.Event()
        actor._main = asyncio.create_task(actor._supervise(ready), name=f"{name}-main")
        await ready.wait()
        return actor

    async def _supervise(self, ready: asyncio.Event) -> None:
        """Own every member's task. A bug in one ends them all, and `events` raises it."""
        try:
            async with asyncio.TaskGroup() as self._members:
                ready.set()
                await self._is_closing.wait()
                for group_id in list(self._playing):
                    self._cancel(group_id)
        finally:
            self._has_news.set()

    async def play(self, grants: list[Grant]) -> None:
        """Begin these; returns at once."""
        assert self._members is not None
        for grant in grants:
            for member in grant.members:
                name = f"{grant.group_id}/{member}"
                task = self._members.create_task(self._member(grant, member), name=name)
                self._playing[grant.group_id].add(task)
                task.add_done_callback(partial(self._if_never_begun, grant, member))

    async def cancel(self, group_ids: list[str]) -> None:
        """Stop the members of these groups; they end as cancelled."""
        for group_id in group_ids:
            self._cancel(group_id)

    async def events(self) -> list[ActorEvent]:
        """What happened since the last call; waits for something. Raises what broke the actor."""
        await self._has_news.wait()
        assert self._main is not None
        if self._main.done() and not self._outbox:
            await self._main  # raises the bug that ended it
            return []
        if not self._main.done():  # else the next call must not wait: it raises
            self._has_news.clear()
        self._news_due_s = math.inf
        news, self._outbox = self._outbox, []
        busy = self._engine.take_busy()
        news += [Busy(who=self.name, start_s=start, end_s=end) for start, end in busy]
        news.append(self._engine.stats())
        return news

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        """Load a version while playing."""
        return await self._engine.update_weights(manifest, self._update_mode)

    async def join(self, endpoint: Endpoint) -> None:
        """Let the engine meet the learner, which sends it weights from then on. Raises EngineError."""
        if not isinstance(self._engine, Joins):
            raise EngineError(f"{type(self._engine).__name__} reads weights from files alone")
        await self._engine.join(endpoint)

    async def plug(
        self, name: str, section: PoolSection, *, files: Mapping[str, bytes] | None = None
    ) -> Plugged:
        """Serve a version of a pool beside those served. Raises ConfigError.

        `files`: the text of a source that is a path of another machine.
        """
        return await self._sessions.plug(name, section, files=files)

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        """Configurations of an environment of a version served. Raises EnvFault."""
        return await self._sessions.draw(key, env, level=level, seed=seed, count=count)

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        """Begin an episode as a check of an environment. Raises ConfigError for a mistake, EnvFault."""
        await self._sessions.try_env(key, env, level=level)

    async def retire(self, key: PoolKey) -> None:
        """Open no new session on a version."""
        await self._sessions.retire(key)

    async def close(self) -> None:
        """End every member, then the engine."""
        self._is_closing.set()
        if self._main is not None:
            await self._main
        await self._engine.close()

    async def _member(self, grant: Grant, member: int) -> None:
        def on_turn(turn: Turn, reply: Row) -> None:
            done = TurnDone(
                group_id=grant.group_id,
                member=member,
                attempt=grant.attempt,
                turn=turn,
                reply=reply,
            )
            self._tell(done)

        episode = self._episode(grant, member, on_turn)
        self._begun.add((grant.group_id, member, grant.attempt))
        try:
            rollout = await episode.play()
        except asyncio.CancelledError:
            self._tell(RolloutDone(rollout=episode.ended(StopReason.CANCELLED)))
            raise
        finally:
            self._forget(grant.group_id, asyncio.current_task())
        self._tell(RolloutDone(rollout=rollout))

    def _episode(self, grant: Grant, member: int, on_turn: Callable[[Turn, Row], None]) -> Episode:
        return Episode(
            grant=grant,
            member=member,
            engine=self._engine,
            sessions=self._sessions,
            tokens=self._tokens,
            limits=self._limits,
            on_turn=on_turn,
            actor=self.name,
        )

    def _if_never_begun(self, grant: Grant, member: int, task: asyncio.Task[None]) -> None:
        """A task cancelled before its first step never runs: its member ends here."""
        key = (grant.group_id, member, grant.attempt)
        if key in self._begun:
            self._begun.discard(key)
            return
        self._forget(grant.group_id, task)
        episode = self._episode(grant, member, lambda _turn, _reply: None)
        self._tell(RolloutDone(rollout=episode.ended(StopReason.CANCELLED)))

    def _forget(self, group_id: str, task: asyncio.Task[None] | None) -> None:
        tasks = self._playing[group_id]
        if task is not None:
            tasks.discard(task)
        if not tasks:
            del self._playing[group_id]

    def _cancel(self, group_id: str) -> None:
        for task in self._playing.get(group_id, ()):
            task.cancel()

    def _tell(self, event: ActorEvent) -> None:
        self._outbox.append(event)
        loop = asyncio.get_running_loop()
        wait_s = TURN_WAIT_S if isinstance(event, TurnDone) else ROLLOUT_WAIT_S
        due_s = loop.time() + wait_s
        if due_s < self._news_due_s:
            self._news_due_s = due_s
            loop.call_at(due_s, self._has_news.set)
