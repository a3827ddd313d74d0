"""A teacher plays training tasks so that its successes can be imitated.

It plays as a run's actor does, in this process: the run's engine, env pool, budgets and temperature. Tasks
are drawn evenly from the run's pools, of the training side alone.
"""

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from configs.load import DEFAULT_RECIPE, load
from configs.schema import RunConfig
from configs.sft import MessagesRow, RolloutsRecipe
from envpool.pool import EnvPool
from envpool.task import Task
from rollout.curriculum import Curriculum, Share
from rollout.engine import Engine
from rollout.engines import start_engine
from rollout.episode import Episode, Limits, Session
from rollout.files import RolloutRow
from rollout.logged import tell
from rollout.run import Checked, check
from rollout.successes import Choice, Schemas, demonstrations
from rollout.tokens import ChatTokens
from rollout.types import Grant

_log = logging.getLogger(__name__)

# Draws for each task wanted, where a pool has few.
_DRAWS = 20
# Times that it is said how far the teacher is.
_LINES = 5


# Prompt and tools of each task, by its id.
Shown = Mapping[str, tuple[str, Schemas]]


def sample(recipe: RolloutsRecipe, *, seed: int) -> list[MessagesRow]:
    """What the teacher did well; says what was kept and left out. Raises ConfigError, EngineError."""
    rows, shown = play(recipe, seed=seed)
    choice = Choice(recipe)
    for row in rows:
        choice.offer(row, is_evaluation=False)
    made = demonstrations(choice.chosen(), shown, choice.left)
    tell(recipe.teacher, choice, made)
    return made


def play(recipe: RolloutsRecipe, *, seed: int) -> tuple[list[RolloutRow], Shown]:
    """Every rollout of the teacher, with its tokens, and what each task was shown with.

    Raises ConfigError, EngineError.
    """
    given = recipe.recipe
    if not any(word.endswith(".toml") and "=" not in word for word in given):
        given = [DEFAULT_RECIPE, *given]
    checked = check(load([*given, f"model.path={recipe.teacher}"]))
    tasks = draw(checked, number=recipe.tasks, seed=seed)
    _log.info("teacher: plays %d tasks, %d times each", len(tasks), recipe.samples)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        return asyncio.run(_play(checked, tasks, recipe.samples, log))


def draw(checked: Checked, *, number: int, seed: int) -> list[Task]:
    """Up to `number` different training tasks; fewer where the pools have no more."""
    config = checked.config
    shares = {
        source.key: Share(source=source, weight=config.pools[name].weight, envs=source.train)
        for name, source in checked.sources.items()
        if config.pools[name].split == "train"
    }
    evenly = msgspec.structs.replace(config.rollout, draw="uniform")
    curriculum = Curriculum(shares, evenly, seed=seed)
    tasks: dict[str, Task] = {}
    for _ in range(number * _DRAWS):
        if len(tasks) == number:
            break
        task = curriculum.next().task
        tasks.setdefault(task.id, task)
    return list(tasks.values())


@dataclass(slots=True, kw_only=True)
class _Watched:
    """Sessions of a pool; what each task was shown with is kept."""

    pool: EnvPool
    shown: dict[str, tuple[str, Schemas]] = field(default_factory=dict)

    async def open(self, task: Task) -> Session:
        session = await self.pool.open(task)
        self.shown[task.id] = session.prompt, session.tools
        return session


async def _play(
    checked: Checked, tasks: Sequence[Task], samples: int, log: Path
) -> tuple[list[RolloutRow], Shown]:
    """`log`: where an engine with processes of its own writes their errors."""
    config = checked.config
    path = config.model.path
    tokens = await asyncio.to_thread(ChatTokens.load, path)
    engine = await start_engine(config, path, section=config.engine, version=0, log=log)
    try:
        async with await EnvPool.start(config.pools, limits=config.envpool) as pool:
            watched = _Watched(pool=pool)
            rows = await _episodes(config, engine, watched, tokens, tasks, samples)
            return rows, watched.shown
    finally:
        await engine.close()


async def _episodes(
    config: RunConfig,
    engine: Engine,
    sessions: _Watched,
    tokens: ChatTokens,
    tasks: Sequence[Task],
    samples: int,
) -> list[RolloutRow]:
    limits = Limits.of(config.rollout)
    room = asyncio.Semaphore(config.engine.max_running)
    rows: list[RolloutRow] = []
    total = len(tasks) * samples

    async def play(grant: Grant, member: int) -> None:
        async with room:
            episode = Episode(
                grant=grant,
                member=member,
                engine=engine,
                sessions=sessions,
                tokens=tokens,
                limits=limits,
                on_turn=lambda _turn, _reply: None,
            )
            rollout = await episode.play()
        row = RolloutRow.of(rollout, config=grant.task.config, group_size=samples)
        rows.append(msgspec.structs.replace(row, rows=rollout.rows))
        if len(rows) % max(1, total // _LINES) == 0:
            _log.info("teacher: %d of %d rollouts", len(rows), total)

    async with asyncio.TaskGroup() as group:
        for number, task in enumerate(tasks):
            grant = Grant(
                group_id=f"teacher/{number}",
                task=task,
                members=list(range(samples)),
                temperature=config.rollout.temperature,
            )
            for member in grant.members:
                group.create_task(play(grant, member))
    # The order in which they ended depends on the machine.
    return sorted(rows, key=lambda row: (int(row.group_id.rpartition("/")[2]), row.member))
