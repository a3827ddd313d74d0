"""Which pools a run draws from: the versions there are, and how they come and go while it runs.

    add      validated -- plugged on every actor -- configurations drawn -- in the mixture
    replace  the same, and the version before drains
    remove   drains: its groups finish, nothing of it is drawn; with its last one it is retired

The code of a pool that is added here is imported by the actors' processes only. One operation at a time.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.library import LibrarySource
from envpool.pool import Plugged
from envpool.source import Source
from envpool.task import PoolKey, Task
from rollout import kept_code, rundir
from rollout.buffer import ReplayQueue
from rollout.curriculum import Curriculum, Share
from rollout.evaluate import default_sets
from rollout.ports import ActorPort
from rollout.refusals import NotThere, Refused
from rollout.types import FORMAT
from rollout.untouched import check_stays_untouched, untouched

logger = logging.getLogger(__name__)

FILE = "pools.json"

# What a version of a pool keeps for as long as it is served.
_KEPT = (
    "split",
    "trusted",
    "is_replayable",
    "sessions_per_process",
    "sessions_per_worker",
    "step_timeout_s",
    "memory_mb",
    "cpu_s",
)


class PoolState(StrEnum):
    """Where a version of a pool is."""

    LIVE = "live"
    """Its tasks are drawn."""
    DRAINING = "draining"
    """Nothing of it is drawn any more; what is on its way is finished, and what evaluates it stays."""
    REMOVED = "removed"
    """Nobody serves it."""


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a pool, as `pools.json` and checkpoints keep it."""

    name: str
    version: str
    section: PoolSection
    state: PoolState
    is_evaluated: bool = False
    """An evaluation set has tasks of it."""
    code: str = ""
    """Where its text is kept, in the run's directory, if its source is a path."""

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.name, self.version)

    def kept(self, run_dir: Path) -> PoolSection:
        """Its section, for a run that goes on: with the text that is kept."""
        if not self.code:
            return self.section
        return msgspec.structs.replace(self.section, source=str(run_dir / self.code))


class PoolsFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run_dir/pools.json`: the pools that a run has now."""

    format: int = FORMAT
    pools: list[PoolRecord]
    trained: list[str] | None = None
    """Ids of the environments that it trained on, of pools that it has no more too; None: not known."""


class PoolChanged(msgspec.Struct, frozen=True, kw_only=True, tag="pool", tag_field="kind"):
    """A line of `events.jsonl`: a version of a pool came, drains or went."""

    name: str
    version: str
    state: PoolState
    at_s: float


@dataclass(slots=True, kw_only=True)
class Version:
    """A version of a pool in this run."""

    source: Source
    section: PoolSection
    state: PoolState
    is_evaluated: bool = False
    code: str = ""
    """As `PoolRecord.code`."""
    layers: list[str] = field(default_factory=list)
    """What isolates it, as far as it was plugged here."""

    @property
    def key(self) -> PoolKey:
        return self.source.key

    @property
    def record(self) -> PoolRecord:
        return PoolRecord(
            name=self.key.name,
            version=self.key.version,
            section=self.section,
            state=self.state,
            is_evaluated=self.is_evaluated,
            code=self.code,
        )


class Pools:
    """The versions of a run's pools; the mixture they are drawn from follows them."""

    def __init__(
        self,
        versions: Iterable[Version],
        *,
        run_dir: Path,
        actors: Mapping[str, ActorPort],
        evaluator: ActorPort | None,
        curriculum: Curriculum,
        queue: ReplayQueue,
        note: Callable[[msgspec.Struct], None],
        evaluate: Callable[[str, list[Task]], set[PoolKey]],
        sets: Callable[[], Mapping[str, list[Task]]] = dict,
        configured_sets: Collection[str] = (),
        trained: Collection[str] = (),
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        """`evaluate` makes tasks the evaluation set of a name; none of them, and there is no set.

        It returns the versions that evaluation sets are about now. `trained` are the ids of the
        environments that the run trains on, or trained on before it went on.
        """
        self._versions = {version.key: version for version in versions}
        self._run_dir = run_dir
        self._actors = list(actors.values())
        self._evaluator = evaluator
        self._curriculum = curriculum
        self._queue = queue
        self._note = note
        self._evaluate = evaluate
        self._sets = sets
        self._configured_sets = configured_sets
        self._trained = set(trained)
        self._seed = seed
        self._clock = clock
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        for version in self._versions.values():
            if version.state is PoolState.LIVE:
                self._mix(version)

    # -- what there is ------------------------------------------------------------------------

    @property
    def versions(self) -> list[Version]:
        """Every version that this run had, the first one first."""
        return list(self._versions.values())

    def records(self) -> list[PoolRecord]:
        """Those that are not removed, for a checkpoint."""
        return [v.record for v in self.versions if v.state is not PoolState.REMOVED]

    @property
    def trained(self) -> list[str]:
        """Ids of the environments that this run trained on, of pools that are gone too."""
        return sorted(self._trained)

    def live(self, name: str) -> Version:
        """The version of a pool that is drawn from. Raises NotThere."""
        for version in self._live():
            if version.key.name == name:
                return version
        known = ", ".join(version.key.name for version in self._live())
        raise NotThere(f"there is no pool {name!r}: there are {known}")

    def is_live(self, key: PoolKey) -> bool:
        """Whether tasks of a version may be drawn."""
        version = self._versions.get(key)
        return version is not None and version.state is PoolState.LIVE

    def _live(self) -> list[Version]:
        return [v for v in self.versions if v.state is PoolState.LIVE]

    # -- operations ---------------------------------------------------------------------------

    async def write(self) -> None:
        """Write down what there is, with its text, for a run that goes on from here."""
        async with self._lock:
            for version in self._live():
                section = version.section
                version.code = await asyncio.to_thread(
                    kept_code.keep, self._run_dir, version.key.name, section.source
                )
            await self._write()

    async def _write(self) -> None:
        record = PoolsFile(pools=self.records(), trained=self.trained)
        await asyncio.to_thread(rundir.write_json, self._run_dir / FILE, record)

    async def add(self, name: str, section: PoolSection, *, replace: bool = False) -> Version:
        """Draw from a pool from now on; with `replace` in place of the version there is.

        Raises ConfigError for a pool that cannot be served or drawn from, Refused and NotThere for an
        operation that cannot be; the run is then what it was.
        """
        async with self._lock:
            names = {version.key.name for version in self._live()}
            if name in names and not replace:
                raise Refused(
                    f"there is a pool {name!r} already: replace it (replace: true), or choose another "
                    "name"
                )
            before = self.live(name) if replace else None
            if section.split == "eval" and before is not None:
                self._check_not_last(before)
            # What is served is what is kept, whatever becomes of the source meanwhile.
            was_kept = await asyncio.to_thread(kept_code.is_kept, self._run_dir, section.source)
            code = await asyncio.to_thread(kept_code.keep, self._run_dir, name, section.source)
            try:
                version = await self._serve(name, section, code)
            except BaseException:
                if not was_kept:  # by another version, which still needs it
                    await asyncio.to_thread(kept_code.drop, self._run_dir, code)
                raise
            self._versions[version.key] = version
            self._mix(version)
            self._tell(version, f"weight {section.weight:g}, {len(version.source.train)} envs")
            if before is not None and before.key != version.key:
                self._drain(before)
            await self._write()
            return version

    async def remove(self, name: str) -> Version:
        """Draw nothing of a pool any more. Raises NotThere, and Refused for the last one."""
        async with self._lock:
            version = self.live(name)
            self._check_not_last(version)
            self._drain(version)
            await self._write()
            return version

    def group_ended(self, key: PoolKey) -> None:
        """A group of a version is live no more."""
        version = self._versions.get(key)  # None for one that a resumed run has no more
        if version is not None and version.state is PoolState.DRAINING:
            self._news.set()

    async def run(self) -> None:
        """Consumes drained versions; produces their end on the actors. An endless stage."""
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._lock:
                drained = [version for version in self.versions if self._is_drained(version)]
                for version in drained:
                    await asyncio.gather(*(self._retire(version.key, p) for p in self._ports()))
                    version.state = PoolState.REMOVED
                    self._tell(version)
                if drained:
                    await self._write()

    # -- parts of them ------------------------------------------------------------------------

    def _check_not_last(self, version: Version) -> None:
        """Raise Refused for the only pool that is trained on."""
        trained = [one for one in self._live() if one.section.split == "train"]
        if trained == [version]:
            raise Refused(
                f"{version.key.name!r} is the last pool to train on: add another first, or replace it"
            )

    async def _serve(self, name: str, section: PoolSection, code: str) -> Version:
        """A version on every actor, ready to be drawn from. Raises ConfigError, Refused."""
        folder = str(self._run_dir / code)
        served = msgspec.structs.replace(section, source=folder) if code else section
        try:
            plugged = await self._plug(name, served)
            try:
                version = await self._version(name, section, plugged)
            except BaseException:
                await self._unplug(plugged.key, self._ports())
                raise
        except ConfigError as error:
            told = kept_code.in_their_words(str(error), folder, section.source)
            raise ConfigError(told if code else str(error)) from error
        version.code = code
        return version

    async def _plug(self, name: str, section: PoolSection) -> Plugged:
        """Serve a version on every actor, or on none of them. Raises ConfigError, Refused."""
        ports = self._ports()
        found = await asyncio.gather(
            *(port.plug(name, section) for port in ports), return_exceptions=True
        )
        served = {
            port.name: one
            for port, one in zip(ports, found, strict=True)
            if isinstance(one, Plugged)
        }
        errors = {
            port.name: one
            for port, one in zip(ports, found, strict=True)
            if isinstance(one, BaseException)
        }
        if self._evaluator is not None:
            error = errors.get(self._evaluator.name)
            if error is not None and not isinstance(error, ConfigError):
                # It never stops a run, nor what is done to one.
                logger.warning("pool %s is not served to evaluation: %r", name, error)
                del errors[self._evaluator.name]
        keys = {one.key for one in served.values()}
        if not errors and len(keys) == 1:
            return served[self._actors[0].name]
        for port in ports:
            if port.name in served:
                await self._unplug(served[port.name].key, [port])
        for where, error in errors.items():
            if isinstance(error, ConfigError):
                raise ConfigError(f"{error} (on {where}; the run is as it was)") from error
            raise error
        shown = ", ".join(sorted(key.version for key in keys))
        raise Refused(f"pool {name!r}: actors found different code ({shown}): try again")

    async def _version(self, name: str, section: PoolSection, plugged: Plugged) -> Version:
        """A version with configurations to draw. Raises ConfigError, Refused."""
        known = self._versions.get(plugged.key)
        if known is not None and known.state is not PoolState.REMOVED:
            for option in _KEPT:
                if getattr(known.section, option) != getattr(section, option):
                    raise Refused(
                        f"pool {name!r} is served with this very code, and {option}="
                        f"{getattr(known.section, option)!r} holds as long as it is: only weight and "
                        "train can change"
                    )
        if section.split == "eval" and name in self._configured_sets:
            raise Refused(
                f"the run has an evaluation set {name!r} of its own: choose another name for the pool"
            )
        source = LibrarySource(name, section, plugged.key.version, plugged.envs)
        if section.split == "train":
            self._check_stays_untouched(source)
        await source.fill_from(self._actors[0], {env: [0] for env in source.train})
        if section.split == "train":
            source.check_trainable()
        else:
            found = {name: source}
            drawn_whole = untouched({name: section}, found, self._trained)
            tasks = default_sets(found, {}, seed=self._seed, untouched=drawn_whole)
            self._put_set(name, tasks[name])
        return Version(
            source=source,
            section=section,
            state=PoolState.LIVE,
            is_evaluated=section.split == "eval" or (known is not None and known.is_evaluated),
            layers=plugged.layers,
        )

    def _check_stays_untouched(self, source: LibrarySource) -> None:
        """Raise Refused for a pool to train on with what is evaluated on any configuration."""

        def is_for_evaluation(key: PoolKey) -> bool:
            return self._versions[key].section.split == "eval"

        sets = dict(self._sets())
        if any(one.key.name == source.name and is_for_evaluation(one.key) for one in self._live()):
            sets.pop(source.name, None)  # goes with the version that is replaced
        check_stays_untouched(
            source, sets, trained=self._trained, is_for_evaluation=is_for_evaluation
        )

    def _ports(self) -> list[ActorPort]:
        return [*self._actors, *([self._evaluator] if self._evaluator else [])]

    def _mix(self, version: Version) -> None:
        if version.section.split == "eval":
            return
        share = Share(
            source=version.source, weight=version.section.weight, envs=version.source.train
        )
        self._curriculum.put(version.key, share)
        self._trained.update(version.source.train)

    def _drain(self, version: Version) -> None:
        version.state = PoolState.DRAINING
        if version.section.split == "eval":
            successors = [one for one in self._live() if one.key.name == version.key.name]
            if not any(one.section.split == "eval" for one in successors):
                self._put_set(version.key.name, [])
        for draw in self._curriculum.drop(version.key) if self._curriculum.has(version.key) else ():
            # Somebody asked for this task again: what became of it is written down.
            self._queue.cancel(self._queue.create(draw.task, attempt=draw.attempt))
        self._tell(version)
        self._news.set()

    def _put_set(self, name: str, tasks: list[Task]) -> None:
        """Evaluate on these; what the set was about before may be needed no more."""
        self.put_evaluated(self._evaluate(name, tasks))

    def put_evaluated(self, evaluated: set[PoolKey]) -> None:
        """These versions evaluation needs, now that one ended or its sets changed."""
        for version in self.versions:
            version.is_evaluated = version.key in evaluated
        self._news.set()

    def _is_drained(self, version: Version) -> bool:
        is_over = version.state is PoolState.DRAINING and not version.is_evaluated
        return is_over and not self._queue.num_live(version.key)

    async def _unplug(self, key: PoolKey, ports: Iterable[ActorPort]) -> None:
        """Take back what was plugged in vain; a version served before stays."""
        known = self._versions.get(key)
        if known is None or known.state is PoolState.REMOVED:
            await asyncio.gather(*(self._retire(key, port) for port in ports))

    async def _retire(self, key: PoolKey, port: ActorPort) -> None:
        try:
            await port.retire(key)
        except Exception as error:
            if port is not self._evaluator:
                raise
            # Evaluation never stops a run.
            logger.warning("evaluation did not retire pool %s: %r", key.name, error)

    def _tell(self, version: Version, more: str = "") -> None:
        key, state = version.key, version.state
        self._note(PoolChanged(name=key.name, version=key.version, state=state, at_s=self._clock()))
        logger.info("pool %s: version %s is %s%s", *key, state, f": {more}" if more else "")


def read(run_dir: Path) -> PoolsFile | None:
    """The pools that a run had when it last changed them; None where it never wrote any.

    Raises ConfigError for a damaged file.
    """
    path = run_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=PoolsFile)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): remove it, and the pools are those of the checkpoint"
        ) from error
