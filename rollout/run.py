"""A run from config to summary: checks, processes, coordinator, and everything closed again.

`launch.py` calls `check` before anything starts and `play` afterwards.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from configs.load import RECIPES, ConfigError, find, make_importable
from configs.schema import PoolSection, RunConfig
from envpool import library
from envpool.conformance import check_envs
from envpool.folder import is_path
from envpool.source import PoolSource, Source
from envpool.task import Task
from envpool.trust import refuse_untrusted
from rollout import audit, checkpoints, rundir
from rollout.control import serve
from rollout.coordinator import Coordinator
from rollout.engines import check_engine
from rollout.evaluate import default_sets, draw_sets, locate
from rollout.evaluator import Evaluator
from rollout.files import RunFiles
from rollout.metrics import MetricsWriter, WandbSink
from rollout.ports import ActorPort, LearnerPort
from rollout.resume import Resumed, check_pools
from rollout.shapes import shapes_of
from rollout.summary import Summary, differences, pair
from rollout.terminal import Screen
from rollout.untouched import trained_ids, untouched
from rollout.weights import run_id

logger = logging.getLogger(__name__)

# A head node that does not answer within this is not there.
REACH_S = 5.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Checked:
    """A config whose every name was found: nothing has started yet."""

    config: RunConfig
    sources: Mapping[str, Source]
    evaluation_sets: dict[str, list[Task]]
    default_sets: tuple[str, ...] = ()
    """Those of them that the config does not name."""
    resumed: Resumed | None = None


class Running(Protocol):
    """The processes of a run."""

    @property
    def actors(self) -> Mapping[str, ActorPort]: ...
    @property
    def learner(self) -> LearnerPort | None: ...
    @property
    def evaluator(self) -> ActorPort | None: ...
    @property
    def evaluator_reads(self) -> bool:
        """Whether the evaluator's engine reads the files that the learner writes."""
        ...


def check(
    config: RunConfig, resumed: Resumed | None = None, *, evaluates_every_pool: bool = False
) -> Checked:
    """Find model and pools, try the environments, draw the evaluation sets; raises ConfigError.

    With `evaluates_every_pool` a pool that no set is about gets one of its own.
    """
    model_path = find(config.model.path).absolute()
    if not (model_path / "config.json").is_file():
        raise ConfigError(
            f"model.path={config.model.path!r} has no config.json: name a directory "
            "in Hugging Face format"
        )
    if (model_path / "rollouts").is_dir():
        newest = checkpoints.latest(model_path)
        hint = f"name {newest / 'hf'}" if newest else "it has no checkpoint yet"
        raise ConfigError(f"model.path={config.model.path!r} is the directory of a run: {hint}")
    if not config.pools:
        raise ConfigError(
            "pools is empty: add a table [pools.<name>] with a source, or name a recipe before yours "
            "(launch.py configs/local.toml mine.toml): local.toml is used where none is named"
        )
    if config.learner.steps and all(one.split == "eval" for one in config.pools.values()):
        raise ConfigError(
            "pools: every one has split='eval', so that there is nothing to train on: set split='train' "
            "for one, or learner.steps=0"
        )
    members = config.rollout.group_size
    if config.engine.max_running < members:
        raise ConfigError(
            f"engine.max_running={config.engine.max_running} has no room for a group of "
            f"rollout.group_size={members}: raise it to at least {members}"
        )
    _check_adapted(config, model_path)
    check_engine(config)
    _check_reachable(config.cluster.address)
    refuse_untrusted(config.pools, config.envpool)  # before its code is imported here
    make_importable(config.run.imports)
    config = msgspec.structs.replace(
        config,
        pools={name: _found(name, section, config) for name, section in config.pools.items()},
    )
    sources = _sources(config, resumed, evaluates_every_pool=evaluates_every_pool)
    earlier = resumed.trained if resumed is not None else ()
    drawn_whole = untouched(config.pools, sources, trained_ids(config.pools, sources, earlier))
    sets = draw_sets(config.eval.sets, sources, seed=config.run.seed, untouched=drawn_whole)
    wanting = {
        name: source
        for name, source in sources.items()
        if evaluates_every_pool or config.pools[name].split == "eval"
    }
    missing = default_sets(wanting, sets, seed=config.run.seed, untouched=drawn_whole)
    model = msgspec.structs.replace(config.model, path=str(model_path))
    if resumed is not None:
        check_pools(resumed, sources)
    return Checked(
        config=msgspec.structs.replace(config, model=model),
        sources=sources,
        evaluation_sets=sets | missing,
        default_sets=tuple(missing),
        resumed=resumed,
    )


def _found(name: str, section: PoolSection, config: RunConfig) -> PoolSection:
    """With an absolute path for a source that is one: here, beside the recipe, or beside ours."""
    if not is_path(section.source):
        return section
    path = Path(section.source).expanduser()
    folders = [*config.run.imports, RECIPES]
    tried = [path.absolute(), *(Path(folder) / path for folder in folders)]
    for candidate in tried:
        if candidate.exists():
            return msgspec.structs.replace(section, source=str(candidate))
    raise ConfigError(
        f"pools.{name}.source={section.source!r} does not exist: looked for "
        f"{', '.join(map(str, dict.fromkeys(tried)))}"
    )


def _sources(
    config: RunConfig, resumed: Resumed | None, *, evaluates_every_pool: bool
) -> dict[str, Source]:
    """The pools by their code, whose environments were tried. Raises ConfigError.

    Code is imported here only if it is trusted and has a name of its own: the modules of a path are
    named after their files alone, and two pools may have the same. What came while the run went on is
    not imported, as it was not then, so that its evaluation sets are drawn the same again.
    """
    late = (
        {name for name, one in config.pools.items() if resumed.first_pools.get(name) != one}
        if resumed is not None and resumed.pools
        else ()
    )
    imported = {
        name: PoolSource.load(name, section)
        for name, section in config.pools.items()
        if (section.trusted or config.envpool.allow_unsandboxed)
        and not is_path(section.source)
        and name not in late
    }
    others = {name: one for name, one in config.pools.items() if name not in imported}

    def used(sources: Mapping[str, Source]) -> dict[str, dict[str, set[int]]]:
        """The levels of the environments of these."""
        every = {name: imported.get(name) or sources[name] for name in config.pools}
        found = _used(config, every, evaluates_every_pool=evaluates_every_pool)
        return {name: levels for name, levels in found.items() if name in sources}

    studied = library.study(others, config.envpool, used)
    sources: dict[str, Source] = {name: (imported | studied)[name] for name in config.pools}
    for name, levels in _used(config, sources, evaluates_every_pool=evaluates_every_pool).items():
        if name in imported:
            check_envs(imported[name], levels, timeout_s=config.envpool.start_timeout_s)
    return sources


def _used(
    config: RunConfig, sources: Mapping[str, Source], *, evaluates_every_pool: bool
) -> dict[str, dict[str, set[int]]]:
    """The levels at which a run draws each environment, by pool and id; raises ConfigError."""
    used: dict[str, dict[str, set[int]]] = {name: {} for name in sources}
    for name, spec in config.eval.sets.items():
        for env in spec.envs:
            source, env_id = locate(name, env, sources)
            used[source.name].setdefault(env_id, set()).add(spec.level)
    for name, source in sources.items():
        is_trained = config.pools[name].split == "train"
        is_default = (evaluates_every_pool or not is_trained) and not used[name]
        drawn = source.envs if is_default else ()
        if config.learner.steps and is_trained and not is_default:
            drawn = source.train
        for env_id in drawn:
            used[name].setdefault(env_id, set()).add(0)
    return used


def _check_adapted(config: RunConfig, model_path: Path) -> None:
    """Raise ConfigError for layers to adapt that the model's files have no matrix of."""
    if not config.learner.lora.targets:
        return
    shapes = shapes_of(model_path)
    matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2}
    known = {name.rpartition(".")[2] for name in matrices} - {"embed_tokens", "lm_head"}
    if unknown := sorted(set(config.learner.lora.targets) - known):
        raise ConfigError(
            f"learner.lora.targets has {', '.join(unknown)}, and the matrices of model.path="
            f"{config.model.path!r} that can be adapted are {', '.join(sorted(known))}"
        )


def _check_reachable(address: str) -> None:
    """Raise ConfigError for `host:port` where nobody listens: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return  # `auto`, or a Ray client's URL
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster.address={address}: nothing answers there ({error}); start Ray on the head node "
            "(ray start --head), or leave cluster.address empty for this machine alone"
        ) from error


def make_report(run_dir: Path) -> None:
    """Write `report.html`. A failure is said and changes nothing: the run is over by now."""
    try:
        from rollout.report import page  # matplotlib takes a second to load

        path = page.write(run_dir)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a report, the run stands
        logger.warning(
            "no report, %s: %s; to try again: python launch.py report %s",
            type(error).__name__,
            error,
            run_dir,
        )
    else:
        logger.info("report: %s", rundir.short(path))


async def play(
    checked: Checked,
    run_dir: Path,
    running: Running,
    screen: Screen,
    *,
    startup_s: Mapping[str, float],
) -> Summary:
    """Run the coordinator over ready processes, seen on `screen`; closes files, not the processes.

    Raises whatever ended the run early, after everything so far is on disk.
    """
    config = checked.config
    begun = time.monotonic()
    earlier_s = checked.resumed.snapshot.wall_s if checked.resumed else 0.0
    files = RunFiles(run_dir, keeps_tokens=config.logging.tokens)
    wandb = _wandb(config, run_dir)
    metrics = MetricsWriter(files, wandb=wandb)
    evaluator = None
    if running.evaluator is not None:
        evaluator = Evaluator(
            running.evaluator,
            config=config,
            sets=checked.evaluation_sets,
            run_id=run_id(run_dir),
            files=files,
            clock=time.monotonic,
            step=checked.resumed.snapshot.step if checked.resumed else 0,
            pins=running.evaluator_reads,
        )
    coordinator = Coordinator(
        config=config,
        run_dir=run_dir,
        sources=checked.sources,
        evaluation_sets=checked.evaluation_sets,
        actors=running.actors,
        learner=running.learner,
        files=files,
        metrics=metrics,
        clock=time.monotonic,
        resumed=checked.resumed,
        evaluator=evaluator,
    )
    async with AsyncExitStack() as stack:
        if wandb is not None:
            stack.push_async_callback(asyncio.to_thread, wandb.close)
        stack.push_async_callback(asyncio.to_thread, files.close)
        url = await stack.enter_async_context(
            serve(run_dir, section=config.control, desk=coordinator.desk)
        )
        logger.info("control: %s/status", url)
        following = screen.following(
            coordinator.status, metrics.recent, max_lag=config.rollout.max_lag
        )
        async with following:
            before, after = await coordinator.run()
    live = coordinator.ledger.counts()
    error = await asyncio.to_thread(_audit, run_dir, live)
    changes = await asyncio.to_thread(differences, run_dir)
    summary = Summary(
        eval=pair(before, after, changes),
        steps=coordinator.steps_done,
        wall_s=round(time.monotonic() - begun + earlier_s, 3),
        startup_s=dict(startup_s),
        lag_max=coordinator.lag_max,
        ledger=live,
        ledger_balanced=not error,
        ledger_error=error,
    )
    await asyncio.to_thread(rundir.write_json, run_dir / "summary.json", summary)
    return summary


def _audit(run_dir: Path, live: object) -> str:
    """What the files say against the live ledger; empty when they agree."""
    try:
        recomputed = audit.recompute(run_dir)
    except (audit.AuditError, msgspec.MsgspecError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if recomputed == live else f"files give {recomputed}, the run counted {live}"


def _wandb(config: RunConfig, run_dir: Path) -> WandbSink | None:
    if config.logging.wandb == "off":
        return None
    return WandbSink(
        mode=config.logging.wandb,
        project=config.logging.project,
        name=run_dir.name,
        run_dir=run_dir,
        config=msgspec.to_builtins(config.without_secrets()),
    )
