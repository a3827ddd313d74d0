"""Going on after a run was killed: what is checked, and what is put right before anything starts.

    check   config and overrides, the newest complete checkpoint, pools         nothing is changed
    begin   survivors ended, what came after the checkpoint set aside, config written

What was written after the checkpoint is kept under `abandoned/`, out of the history: no group is in
two steps of it.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from configs.load import ConfigError, add_imports, convert, find, merge, read
from configs.schema import PoolSection, RunConfig, Tree
from envpool.source import Source
from rollout import checkpoints, pools, processes, rundir, snapshot
from rollout.files import line_files
from rollout.lineage import Lineage
from rollout.pools import PoolRecord, PoolState
from rollout.snapshot import Snapshot
from rollout.weights import newest_version, note_version, version_log

logger = logging.getLogger(__name__)

# What a resumed run cannot change, and why.
FIXED = {
    "model": "the weights go on from the checkpoint: train another model in a run of its own",
    "pools": "queued groups and the curriculum belong to the pools they were drawn from (while it runs, "
    "`launch.py pool` changes them)",
    "learner.lora": "the checkpoint has what was trained, all weights or these adapters, and nothing else",
    "weights.every": "the age of what is queued is counted in published versions",
    "rollout.temperature": "what is queued was sampled at the old one",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Resumed:
    """Where a run goes on from."""

    checkpoint: Path
    snapshot: Snapshot
    pools: list[PoolRecord] = field(default_factory=list)
    """The versions of pools that it had, where it wrote them down."""
    trained: frozenset[str] | None = frozenset()
    """Ids of the environments that it trained on, of pools that it has no more too; None: not known."""
    first_pools: Mapping[str, PoolSection] = field(default_factory=dict)
    """The pools that it was started with."""
    version: int
    """What the engines begin with: the checkpoint's weights under a number never used before."""
    lineage: Lineage

    @property
    def weights(self) -> Path:
        """The model directory that engines load."""
        return self.checkpoint / "hf"


def check(run_dir: Path, overrides: list[str]) -> tuple[RunConfig, Resumed]:
    """Find out how `run_dir` goes on, with `overrides` on top of its own config.

    Raises ConfigError for what cannot be resumed, and for overrides that must not be made.
    """
    where = f"--resume {run_dir}"
    path = run_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{where}: no config.json there: name the directory of a run")
    for process in _recorded(run_dir):
        if process.name == "launch" and processes.is_alive(process):
            raise ConfigError(f"{where}: it is still running (pid {process.pid}): stop it first")
    checkpoint = checkpoints.latest(run_dir)
    if checkpoint is None:
        raise ConfigError(
            f"{where}: it has no complete checkpoint (checkpoint.every sets how often one is "
            "written): start the run again"
        )
    config = _config(path, overrides, run_dir, where)
    state = _snapshot(checkpoint, where)
    # A run that was killed after its last step still has to evaluate what it trained.
    is_trained = config.learner.steps == state.step
    is_over = is_trained and (run_dir / "summary.json").exists()
    if is_over or config.learner.steps < state.step:
        raise ConfigError(
            f"{where}: its checkpoint is at step {state.step}, so that learner.steps="
            f"{config.learner.steps} leaves nothing to train; to train on, add "
            f"learner.steps={2 * state.step}"
        )
    if not is_trained and state.lineage.place(state.version) > state.place:
        raise ConfigError(
            f"{where}: its last step published out of turn (weights.every={state.weights_every} does "
            f"not divide {state.step} steps), so that ages can no longer be counted: train on from "
            f"its weights in a run of its own, model.path={checkpoint / 'hf'}"
        )
    version = max(_newest_version(run_dir), state.version) + 1
    lineage = state.lineage.resumed(place=state.place, version=version)
    written = pools.read(run_dir)
    resumed = Resumed(
        checkpoint=checkpoint,
        snapshot=state,
        pools=_kept(state.versions if written is None else written.pools),
        trained=_trained(state.trained, written.trained if written is not None else None),
        first_pools=config.pools,
        version=version,
        lineage=lineage,
    )
    if resumed.pools:
        sections = {record.name: record.kept(run_dir) for record in resumed.pools}
        config = msgspec.structs.replace(config, pools=sections)
    return config, resumed


def _trained(*told: list[str] | None) -> frozenset[str] | None:
    """Together what a checkpoint and `pools.json` say: either may have been written last."""
    known = [ids for ids in told if ids is not None]
    return frozenset().union(*known) if known else None


def _kept(records: list[PoolRecord]) -> list[PoolRecord]:
    """Those that are drawn from, and of the others those that an evaluation set is about, in order."""
    live = {record.name for record in records if record.state is PoolState.LIVE}
    kept: dict[str, PoolRecord] = {}
    for record in records:
        if record.state is PoolState.LIVE or (record.is_evaluated and record.name not in live):
            kept[record.name] = record
        elif record.is_evaluated:
            logger.warning(
                "pool %s was replaced: evaluation goes on with the configurations of the new version",
                record.name,
            )
    return list(kept.values())


def check_pools(resumed: Resumed, sources: Mapping[str, Source]) -> None:
    """Raise ConfigError when the code of a pool is not what the run was started with."""
    now = {source.name: source.version for source in sources.values()}
    for key in [record.key for record in resumed.pools] or resumed.snapshot.pools:
        if now.get(key.name) != key.version:
            raise ConfigError(
                f"pool {key.name} has version {now.get(key.name)} and the run had "
                f"{key.version}: {FIXED['pools']}; restore its code, or start a run of its own"
            )


def begin(run_dir: Path, config: RunConfig, resumed: Resumed) -> None:
    """Make the run directory what it was at the checkpoint; ends processes that survived."""
    for name in processes.end(_recorded(run_dir), within_s=0.0):
        logger.info("ended %s, which had survived", name)
    note_version(version_log(run_dir), resumed.version)
    moved = set_aside(run_dir, resumed.snapshot.sizes)
    if moved is not None:
        logger.info("what was written after step %d is in %s", resumed.snapshot.step, moved)
    # What came later is in pools.json: recipes given again are compared with what it began with.
    first = resumed.first_pools or config.pools
    rundir.write_config(run_dir, msgspec.structs.replace(config, pools=dict(first)))


def set_aside(run_dir: Path, sizes: dict[str, int]) -> Path | None:
    """Cut the line files back to `sizes` bytes; what is cut off, and the summary of it, is kept.

    Returns the directory that has it, None when there was nothing. Interrupted and called again, it
    does the rest. Raises ConfigError when a file is shorter than it was.
    """
    present = line_files(run_dir)
    for name, size in sizes.items():
        if present.get(name, 0) < size:
            raise ConfigError(
                f"{run_dir / name} has {present.get(name, 0)} bytes and had {size} at the "
                "checkpoint: the history of the run is damaged"
            )
    longer = [name for name, size in present.items() if size > sizes.get(name, 0)]
    summary = run_dir / "summary.json"
    if not longer and not summary.exists():
        return None
    folder = run_dir / "abandoned"
    target = folder / f"{len(list(folder.glob('*'))):03d}"
    target.mkdir(parents=True)
    if summary.exists():
        summary.rename(target / summary.name)
    for name in longer:
        kept = target / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (run_dir / name).open("r+b") as lines, kept.open("wb") as tail:
            lines.seek(sizes.get(name, 0))
            shutil.copyfileobj(lines, tail)
            lines.truncate(sizes.get(name, 0))
        if name not in sizes:
            (run_dir / name).unlink()
    return target


def _recorded(run_dir: Path) -> list[processes.Process]:
    """The processes that the run started, as far as it came to writing them down."""
    path = run_dir / "pids.json"
    try:
        return processes.read_pids(run_dir) if path.exists() else []
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): see that nothing of the run is left running, then remove it"
        ) from error


def _newest_version(run_dir: Path) -> int:
    path = version_log(run_dir)
    try:
        return newest_version(path)
    except (msgspec.MsgspecError, KeyError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!r}), so that nobody knows which versions are used up: write "
            '{"format": 1, "version": N} into it, N above every version in metrics.jsonl'
        ) from error


def _config(path: Path, overrides: list[str], run_dir: Path, where: str) -> RunConfig:
    try:
        old: Tree = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: config.json is damaged: {error}") from error
    old.pop("format", None)
    before = _resolved(convert(old, RunConfig))
    merge(old, read(overrides))
    add_imports(old, overrides)
    merge(old, {"run": {"dir": str(run_dir)}})
    after = _resolved(convert(old, RunConfig))
    for name, reason in FIXED.items():
        one, other = _get(before, name), _get(after, name)
        if one != other:
            raise ConfigError(f"{where}: {name} cannot change from {one} to {other}: {reason}")
    return after


def _resolved(config: RunConfig) -> RunConfig:
    """With the model's path as a run writes it down: its own recipe names the same model."""
    try:
        path = str(find(config.model.path).absolute())
    except ConfigError:  # whether the model must be there is not decided here
        return config
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=path))


def _get(config: RunConfig, field: str) -> object:
    value: object = config
    for name in field.split("."):
        value = getattr(value, name)
    return value


def _snapshot(checkpoint: Path, where: str) -> Snapshot:
    try:
        return snapshot.read(checkpoint)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{where}: {checkpoint} cannot be read: {error}") from error
