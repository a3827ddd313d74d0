"""What a run says of itself: before it starts what runs where, at its end what came of it.

All of it goes through the log, so that the file has it too.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.table import Table

from configs.schema import RunConfig
from envpool.task import Split
from rollout import checkpoints
from rollout.processes import Process
from rollout.run import Checked
from rollout.rundir import command_line, short
from rollout.summary import Summary, head, rows, table

logger = logging.getLogger(__name__)


# The settings that decide what an evaluation plays, and where.
EVALUATION = (
    "pools",
    "eval.sets",
    "eval.samples",
    "run.seed",
    "model.dtype",
    "rollout.max_turns",
    "rollout.max_reply_tokens",
    "rollout.max_context_tokens",
    "rollout.timeout_s",
    "engine",
    "actors",
    "envpool",
    "cluster",
)


class Ready(Protocol):
    """What a process said when it was ready."""

    @property
    def name(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def processes(self) -> list[Process]: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def layers(self) -> dict[str, list[str]]: ...


def starting(run_dir: Path, *, engine: str) -> None:
    """Say where the run is written; what follows takes a while, by the kind of engine."""
    logger.info("run: %s", short(run_dir))
    usual = "half a minute to two minutes" if engine == "vllm" else "about ten seconds"
    logger.info("starting Ray, actors and learner: %s", usual)


def opening(
    checked: Checked, run_dir: Path, infos: Sequence[Ready], startup_s: Mapping[str, float]
) -> None:
    """Say what runs where, before it does; `startup_s` is what each part of the start took."""
    config = checked.config
    state = checked.resumed.snapshot if checked.resumed is not None else None
    if state is not None and state.step == config.learner.steps:
        logger.info("resuming after step %d, the last: evaluation is what is left", state.step)
    elif state is not None:
        logger.info(
            "resuming after step %d with %d queued groups; %d half-played ones start again",
            state.step,
            len(state.queued),
            len(state.running),
        )
    for info in infos:
        logger.info("%s: on %s, pid %d", info.name, info.node, info.processes[0].pid)
    size = infos[0].num_parameters / 1e6
    logger.info("model: %s, %.2f M parameters", short(Path(config.model.path)), size)
    for source in checked.sources.values():
        logger.info(
            "pool %s: version %s, %d envs, from %s, sandbox: %s",
            source.name,
            source.version,
            len(source.envs),
            short(Path(source.file)),
            ", ".join(infos[0].layers.get(source.name, ())) or "none",
        )
    _evaluations(checked)
    logger.info("W&B: %s", config.logging.wandb)
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in startup_s.items())
    logger.info("started in %.1f s: %s", sum(startup_s.values()), parts)


def closing(
    summary: Summary, config: RunConfig, run_dir: Path, arguments: Sequence[str] | None
) -> None:
    """Say what the run that `arguments` asked for came to, where it is, and what to try next.

    `arguments` is None for a run that was resumed.
    """
    if summary.eval:
        lines = table(summary.eval)
        logger.info("%s", "\n".join(lines), extra={"renderable": _score_table(summary)})
    if config.learner.steps or not summary.ledger_balanced:
        _ledger(summary)
    if config.learner.steps:
        logger.info(
            "%d steps in %.0f s, largest lag %d", summary.steps, summary.wall_s, summary.lag_max
        )
    else:
        logger.info("evaluated in %.0f s", summary.wall_s)
    newest = checkpoints.latest(run_dir)
    logger.info("summary: %s", short(run_dir / "summary.json"))
    logger.info("rollouts: %s", short(run_dir / "rollouts"))
    if newest is not None:
        logger.info("policy: %s", short(newest / "hf"))
    logger.info("logs: %s", short(run_dir / "logs"))
    logger.info("next:")
    for command in next_commands(config, run_dir, newest, arguments):
        logger.info("  %s", command)


def how_to_go_on(run_dir: Path, config: RunConfig) -> None:
    """Say how a run that broke off is resumed, or why it cannot be."""
    newest = checkpoints.latest(run_dir)
    if newest is not None:
        command = command_line("--resume", short(run_dir))
        logger.info("to go on from step %d: %s", checkpoints.step_of(newest), command)
    elif config.learner.steps:
        every = config.checkpoint.every
        logger.info("no checkpoint yet (checkpoint.every=%d): it cannot be resumed", every)


def next_commands(
    config: RunConfig, run_dir: Path, newest: Path | None, arguments: Sequence[str] | None
) -> list[str]:
    """Commands that make sense after this run, to be pasted into a shell.

    `newest` is the run's newest checkpoint, `arguments` what the run was started with; None where
    it was resumed: which recipes it began with nobody knows any more.
    """
    here = short(run_dir)
    if arguments is None:
        longer = command_line("--resume", here, f"learner.steps={2 * config.learner.steps}")
        can_go_on = config.learner.steps % config.weights.every == 0
        failures = command_line("show", here, *_failures(config))
        return [failures, *([longer] if can_go_on else [])]
    # A token is nobody's business but the caller's.
    kept = [word for word in arguments if not word.startswith(("run.dir=", "control.token="))]
    if newest is None:
        return [
            command_line("show", here, "eval=before", "reward=0"),
            command_line("show", here, "eval=before", "order=longest"),
            command_line(*kept),
        ]
    settings = [word for word in kept if not word.startswith(("learner.steps=", "model.path="))]
    other_lag = 2 if config.rollout.max_lag == 0 else 0
    if config.weights.every > other_lag + 1:
        third = command_line(*settings, f"learner.steps={2 * config.learner.steps}")
    else:
        third = command_line(*kept, f"rollout.max_lag={other_lag}")
    return [
        command_line("show", here, *_failures(config)),
        command_line(
            "eval", *filter(_shapes_evaluation, kept), f"model.path={short(newest / 'hf')}"
        ),
        third,
    ]


def _failures(config: RunConfig) -> list[str]:
    """Filters for rollouts that teach something: what is newest in training was cut off at its end."""
    is_graded = config.eval.after and config.eval.sets
    return ["eval=after", "reward=0"] if is_graded else ["reward=0", "state=trained"]


def _shapes_evaluation(word: str) -> bool:
    """Whether an argument of a run is a recipe, or a setting that changes what an evaluation plays."""
    path, equals, _ = word.partition("=")
    return not equals or any(path == one or path.startswith(f"{one}.") for one in EVALUATION)


def _evaluations(checked: Checked) -> None:
    """Say what is evaluated that nobody asked for by name."""
    for name in checked.default_sets:
        tasks = checked.evaluation_sets[name]
        is_whole = any(task.split is Split.TRAIN for task in tasks)
        logger.info(
            "eval set %s: pool %s is in no [eval.sets], so that all of its %d envs are evaluated on "
            "%d configurations%s",
            name,
            tasks[0].pool,
            len({task.env for task in tasks}),
            len(tasks),
            "" if is_whole else " of its evaluation split",
        )


def _ledger(summary: Summary) -> None:
    ended = ", ".join(f"{number} {state}" for state, number in summary.ledger.groups.items())
    rollouts = sum(summary.ledger.rollouts.values())
    if summary.ledger_balanced:
        logger.info("ledger balances: %s groups, %d rollouts", ended, rollouts)
    else:
        logger.error("the ledger does NOT balance: %s groups: %s", ended, summary.ledger_error)


def _score_table(summary: Summary) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in head(summary.eval):
        shown.add_column(name)
    for row in rows(summary.eval):
        shown.add_row(*row)
    return shown
