"""Demonstrations from what runs have logged, and from files of `messages`.

A log has a task's words and a rollout's calls. The tools that were shown are asked of the environments
themselves: a session is opened on each task, in the run's own pools, as the run kept them.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from configs.load import ConfigError, convert, make_importable
from configs.schema import PoolSection, RunConfig
from configs.sft import MessagesRow, RolloutsRecipe
from envpool.pool import EnvFault, EnvPool
from envpool.task import PoolKey
from rollout import pools
from rollout.files import RolloutRow, whole_lines
from rollout.select import labels, log_paths
from rollout.successes import Choice, Left, Schemas, demonstrations, task_of

_log = logging.getLogger(__name__)

# Sessions opened at once.
_OPENING = 64


def read_all(recipe: RolloutsRecipe) -> list[MessagesRow]:
    """What `recipe.paths` have to imitate; says what was kept and left out. Raises ConfigError."""
    made: list[MessagesRow] = []
    for path in map(Path, recipe.paths):
        if path.is_dir():
            made += _of_run(path, [*log_paths(path, ""), *_evaluations(path)], recipe)
        elif not path.is_file():
            raise ConfigError(f"rollouts.paths: {str(path)!r} does not exist")
        elif (rows := _messages(path)) is not None:
            good = [row for row in rows if row.reward >= recipe.min_reward]
            _log.info("%s: %d of %d demonstrations", path, len(good), len(rows))
            made += good
        else:
            made += _of_run(path.parent.parent, [path], recipe)
    return made


def tell(where: str, choice: Choice, made: Sequence[MessagesRow]) -> None:
    """Say what was kept and what was left out for what."""
    left = ", ".join(f"{number} {reason}" for reason, number in choice.left.items() if number)
    _log.info(
        "%s: %d rollouts, %d kept of %d tasks; left out: %s",
        where,
        choice.num_offered,
        len(made),
        len({row.task for row in made}),
        left or "none",
    )
    envs = sorted({row.env for row in made})
    counts = (f"{env} {sum(row.env == env for row in made)}" for env in envs)
    _log.info("  kept by environment: %s", ", ".join(counts) or "none")


def _of_run(run_dir: Path, logs: Sequence[Path], recipe: RolloutsRecipe) -> list[MessagesRow]:
    config = _config(run_dir)
    sections = _sections(run_dir, config)
    evaluated = {name for name, section in sections if section.split == "eval"}
    choice = Choice(recipe)
    num_damaged = 0
    for log in logs:
        for line in whole_lines(log):
            try:
                row = msgspec.json.decode(line, type=RolloutRow)
            except msgspec.MsgspecError:
                num_damaged += 1
                continue
            # One that was played for an evaluation belongs to no group that ended.
            choice.offer(row, is_evaluation=row.state is None or row.pool in evaluated)
    if num_damaged:
        _log.warning("%s: %d lines cannot be read", run_dir, num_damaged)
    kept = choice.chosen()
    make_importable(config.run.imports)
    shown = asyncio.run(_shown(kept, sections, config)) if kept else {}
    made = demonstrations(kept, shown, choice.left)
    tell(str(run_dir), choice, made)
    if not made and choice.left[Left.EVALUATION]:
        raise ConfigError(
            f"rollouts.paths: {run_dir} has rollouts of the evaluation side alone: a policy that imitates "
            "them cannot be measured on it; sample a teacher (rollouts.teacher) or a run, or set "
            "rollouts.evaluation=true"
        )
    return made


async def _shown(
    rows: Iterable[RolloutRow], sections: Iterable[tuple[str, PoolSection]], config: RunConfig
) -> dict[str, tuple[str, Schemas]]:
    """Prompt and tools of each task, as sessions of the pools show them; without what does not play."""
    tasks = {row.task_id: task_of(row) for row in rows}
    wanted = {task.pool_key for task in tasks.values()}
    shown: dict[str, tuple[str, Schemas]] = {}
    room = asyncio.Semaphore(_OPENING)

    async def look(pool: EnvPool, name: str) -> None:
        async with room:
            try:
                session = await pool.open(tasks[name])
            except EnvFault as fault:
                _log.warning("%s does not play any more: %s", name, fault)
                return
            shown[name] = session.prompt, session.tools
            await session.close()

    async with await EnvPool.start(limits=config.envpool) as pool:
        served: set[PoolKey] = set()
        for name, section in sections:
            if name not in {key.name for key in wanted}:
                continue
            try:
                served.add((await pool.plug(name, section)).key)
            except ConfigError as error:
                _log.warning("pool %s cannot be served: %s", name, error)
        for key in sorted(wanted - served):
            _log.warning("pool %s is not there in version %s any more", key.name, key.version)
        async with asyncio.TaskGroup() as group:
            for name, task in tasks.items():
                if task.pool_key in served:
                    group.create_task(look(pool, name))
    return shown


def _config(run_dir: Path) -> RunConfig:
    path = run_dir / "config.json"
    try:
        tree = msgspec.json.decode(path.read_bytes())
        tree.pop("format", None)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"rollouts.paths: {str(run_dir)!r} is not the directory of a run, whose config.json says which "
            f"pools it played: {error}"
        ) from error
    return convert(tree, RunConfig)


def _sections(run_dir: Path, config: RunConfig) -> list[tuple[str, PoolSection]]:
    """The pools that a run had, by name, in every version that is kept."""
    written = pools.read(run_dir)
    kept = [(one.name, one.kept(run_dir.absolute())) for one in written.pools] if written else []
    return kept or list(config.pools.items())


def _evaluations(run_dir: Path) -> Iterator[Path]:
    for label in labels(run_dir):
        yield from log_paths(run_dir, label)


def _messages(path: Path) -> list[MessagesRow] | None:
    """The demonstrations in a file; None for one of rollouts. Raises ConfigError for neither."""
    rows: list[MessagesRow] = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            rows.append(msgspec.json.decode(line, type=MessagesRow))
        except msgspec.MsgspecError as error:
            if number == 1 and b'"group_id"' in line:
                return None
            raise ConfigError(
                f"rollouts.paths: line {number} of {path} is no demonstration (env, messages, tools, "
                f"reward): {error}"
            ) from error
    return rows
